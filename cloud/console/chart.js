// The load chart: measured line, forecast line with its band, the limit, and now.

import uPlot from "./vendor/uplot/uPlot.esm.js";
import { byId, dayTime, element, kilowatts, minuteTime, number, shortDay, siteZone } from "./format.js";
import { text } from "./strings.js";

const QUARTER_S = 900;
const HEIGHT = { wide: 330, narrow: 250 };

let plot = null;
let shown = null; // what update() was last given, to draw again in another language or theme

const css = (name) => getComputedStyle(document.documentElement).getPropertyValue(name).trim();
const seconds = (iso) => Date.parse(iso) / 1000;

/** Columns on one grid of quarters: time, measured, p50, p90, p10, limit. Missing values are null and break the line. */
function columns(loads, forecasts, capacityW) {
  const starts = [...loads, ...forecasts].map((row) => seconds(row.start));
  if (!starts.length) return null;
  const first = Math.min(...starts);
  const length = (Math.max(...starts) - first) / QUARTER_S + 1;
  const column = () => new Array(length).fill(null);
  const data = [Array.from({ length }, (_, i) => first + i * QUARTER_S), column(), column(), column(), column(), column()];
  const at = (row) => Math.round((seconds(row.start) - first) / QUARTER_S);
  for (const row of loads) data[1][at(row)] = row.supplied_w === null ? null : row.supplied_w / 1000;
  for (const row of forecasts) {
    data[2][at(row)] = row.p50_w / 1000;
    data[3][at(row)] = row.p90_w / 1000;
    data[4][at(row)] = row.p10_w / 1000;
  }
  if (capacityW !== null) data[5].fill(capacityW / 1000);
  return data;
}

const LEGEND = [
  ["measured", "line measured", 1], ["forecast", "line forecast", 2], ["band", "area band", null], ["capacity", "line capacity", 5],
];

/** The legend doubles as the readout under the pointer. */
function drawLegend(index) {
  const data = plot?.data;
  const rows = LEGEND.filter(([, , column]) => column !== 5 || shown.capacityW !== null).map(([name, kind, column]) => {
    let value = "";
    if (data && index !== null) {
      const watts = (c) => (data[c][index] === null ? null : data[c][index] * 1000);
      value = column ? kilowatts(watts(column)) : data[3][index] === null ? "–" : `${number(data[4][index])}–${number(data[3][index])} kW`;
    } else if (column === 5) value = kilowatts(shown.capacityW);
    return element("li", {}, element("i", { className: kind }), text(name), element("b", {}, value));
  });
  if (data && index !== null) rows.unshift(element("li", { className: "moment" }, dayTime(new Date(data[0][index] * 1000), shown.now)));
  byId("legend").replaceChildren(...rows);
}

function markNow(u) {
  const x = u.valToPos(shown.now.getTime() / 1000, "x", true);
  if (x < u.bbox.left || x > u.bbox.left + u.bbox.width) return;
  const { ctx } = u;
  ctx.save();
  ctx.strokeStyle = ctx.fillStyle = css("--quiet");
  ctx.lineWidth = devicePixelRatio;
  ctx.setLineDash([]); // the last series left its own
  ctx.beginPath();
  ctx.moveTo(x, u.bbox.top);
  ctx.lineTo(x, u.bbox.top + u.bbox.height);
  ctx.stroke();
  ctx.font = `600 ${11 * devicePixelRatio}px system-ui, sans-serif`;
  ctx.textAlign = "left";
  ctx.textBaseline = "top";
  ctx.fillText(text("now"), x + 5 * devicePixelRatio, u.bbox.top + 3 * devicePixelRatio);
  ctx.restore();
}

function options(width) {
  const axis = { stroke: css("--quiet"), grid: { stroke: css("--grid"), width: 1 }, ticks: { show: false }, font: "12px system-ui, sans-serif" };
  const line = (name, extra = {}) => ({ stroke: css(`--${name}`), width: 2, points: { show: false }, spanGaps: false, ...extra });
  return {
    width,
    height: width < 600 ? HEIGHT.narrow : HEIGHT.wide,
    legend: { show: false },
    padding: [8, 10, 0, 0],
    tzDate: (at) => uPlot.tzDate(new Date(at * 1000), siteZone()),
    cursor: { drag: { x: false, y: false }, points: { size: 7 } },
    scales: { x: { range: () => shown.window }, y: { range: (_, low, high) => [Math.min(0, low), (high || 1) * 1.08] } },
    axes: [
      { ...axis, size: 42, space: 64, values: (_, splits) => splits.map((at) => {
        const clock = minuteTime(new Date(at * 1000));
        return clock === "00:00" ? `${clock}\n${shortDay(new Date(at * 1000))}` : clock;
      }) },
      { ...axis, size: 56, values: (_, splits) => splits.map((value) => number(value)), label: "kW", labelSize: 18, labelFont: "12px system-ui, sans-serif" },
    ],
    series: [
      {},
      line("measured", { width: 2.5 }),
      line("forecast", { dash: [7, 4] }),
      line("forecast", { width: 0 }),
      line("forecast", { width: 0 }),
      line("capacity", { width: 1.5, dash: [3, 4] }),
    ],
    bands: [{ series: [3, 4], fill: css("--band") }],
    hooks: { draw: [markNow], setCursor: [(u) => drawLegend(u.cursor.idx ?? null)] },
  };
}

/** `view`: {loads, forecasts, capacityW, now: Date, window: [from, to] in seconds, name}. */
export function update(view, rebuild = false) {
  shown = view;
  const data = columns(view.loads, view.forecasts, view.capacityW);
  const host = byId("chart");
  host.hidden = byId("legend").hidden = data === null;
  byId("load-empty").hidden = data !== null;
  byId("load-empty").textContent = text("emptyLoad");
  if (data === null) {
    plot?.destroy();
    plot = null;
    return;
  }
  if (rebuild || !plot) {
    plot?.destroy();
    plot = new uPlot(options(host.clientWidth), data, host);
  } else plot.setData(data);
  const newest = view.loads.findLast((row) => row.supplied_w !== null);
  host.role = "img";
  host.ariaLabel = text("chartLabel", { series: view.name, value: kilowatts(newest?.supplied_w) });
  drawLegend(plot.cursor.idx ?? null);
}

export const redraw = () => shown && update(shown, true);

new ResizeObserver(() => {
  const width = byId("chart").clientWidth;
  if (plot && width && width !== plot.width) plot.setSize({ width, height: width < 600 ? HEIGHT.narrow : HEIGHT.wide });
}).observe(byId("chart"));
matchMedia("(prefers-color-scheme: light)").addEventListener("change", redraw);
