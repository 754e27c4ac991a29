// One function per view: what the API said goes in, elements come out. None of them asks or remembers anything.

import {
  byId, clockTime, completeness, dayName, dayTime, distance, element, icon, kilowattHours, kilowatts, minuteTime, number, percent, shortDay,
} from "./format.js";
import { language, text } from "./strings.js";

const QUARTER_MS = 900_000;
const localized = (row, name) => row[`${name}_${language}`];

function fill(id, rows, empty) {
  byId(id).replaceChildren(...rows);
  const note = byId(`${id.split("-")[0].replace(/^alert$/, "alerts").replace(/^loss$/, "losses")}-empty`);
  note.hidden = rows.length > 0;
  note.textContent = empty;
}

/** A choice of which one is pressed. */
export function segments(id, names, chosen, onChoose) {
  byId(id).replaceChildren(...Object.entries(names).map(([value, label]) => element("button", {
    type: "button", textContent: label, "aria-pressed": String(value === chosen), onclick: () => onChoose(value),
  })));
}

export function clock(now, rate) {
  byId("now").dateTime = now.toISOString();
  byId("now").replaceChildren(element("span", {}, dayName(now)), " ", element("b", {}, clockTime(now)));
  byId("rate").hidden = rate === 1;
  byId("rate").textContent = text("simulated", { rate: number(rate) });
  byId("rate").title = text("simulatedTitle", { rate: number(rate) });
}

export function line(status) {
  const item = (mark, name, value, extra = null) => element("li", {}, icon(...mark), element("span", {}, text(name)), element("b", {}, value), extra);
  const all = status.gateways_online === status.gateways;
  const alarm = status.alerts_critical ? ["critical"] : status.alerts_open ? ["warning"] : ["ok"];
  const critical = status.alerts_critical ? element("em", {}, text("criticalOf", { critical: status.alerts_critical })) : null;
  const acting = { planned: ["wait", "info"], running: ["info"] }[status.demand_response] ?? ["off", "muted"];
  byId("line").replaceChildren(
    item(status.gateways === 0 ? ["wait", "muted"] : all ? ["ok"] : ["warning"], "gateways",
      status.gateways ? text("gatewaysOf", { online: status.gateways_online, all: status.gateways }) : text("noGateways")),
    item(alarm, "alertsOpen", number(status.alerts_open), critical),
    item(acting, "drNow", text(`dr${status.demand_response}`)),
  );
}

export function collected(total, groups, registry, gateways, status) {
  byId("completeness-total").textContent = completeness(total.completeness);
  const notes = total.expected
    ? [text("intervalsOf", { received: number(total.received), expected: number(total.expected) }), text("pointsOf", { points: number(status.points) })]
    : [text("waitCompleteness")];
  if (status.backfill_left) notes.push(text("toFetch", { left: number(status.backfill_left) }));
  byId("completeness-note").replaceChildren(...notes.map((note) => element("span", {}, note)));
  byId("completeness-areas").replaceChildren(...registry.areas.map((area) => {
    const group = groups.find((row) => row.area === area.area);
    const share = group?.completeness ?? null;
    const gateway = gateways.find((row) => row.gateway === area.gateway);
    const kind = share === null ? ["wait", "muted"] : share >= 0.999 ? ["ok"] : share >= 0.95 ? ["warning"] : ["critical"];
    const note = gateway?.online ? null : element("em", {}, text(gateway?.at ? "offline" : "neverSeen"));
    return element("li", {},
      icon(...kind),
      element("span", { className: "name", title: `${area.area} ${localized(area, "name")}` }, `${area.area} ${localized(area, "name")}`, note),
      element("span", { className: "meter" }, element("span", { style: { width: `${(share ?? 0) * 100}%` } })),
      element("b", {}, completeness(share)));
  }));
}

export function loadNow(loads, capacityW, name) {
  const newest = loads.findLast((row) => row.supplied_w !== null);
  byId("load-name").textContent = byId("load-name").title = name;
  byId("load-value").textContent = kilowatts(newest?.supplied_w);
  const meter = byId("load-meter");
  meter.hidden = !newest || capacityW === null;
  if (!newest) return byId("load-note").replaceChildren(text("waitLoad"));
  const start = new Date(newest.start);
  const when = text("at", { from: minuteTime(start), to: minuteTime(new Date(+start + QUARTER_MS)) });
  if (capacityW === null) return byId("load-note").replaceChildren(text("noCapacity"), element("span", {}, when));
  const share = newest.supplied_w / capacityW;
  meter.firstElementChild.style.width = `${Math.min(100, Math.max(0, share * 100))}%`;
  meter.className = `meter ${share > 1 ? "critical" : share > 0.9 ? "warning" : ""}`;
  return byId("load-note").replaceChildren(
    element("span", {}, text("ofCapacity", { percent: percent(share, 0), capacity: kilowatts(capacityW) })), element("span", {}, when));
}

export function peak(forecasts, capacityW, now) {
  const ahead = forecasts.filter((row) => Date.parse(row.start) >= now - QUARTER_MS);
  const highest = ahead.reduce((best, row) => (best === null || row.p50_w > best.p50_w ? row : best), null);
  byId("peak-value").textContent = kilowatts(highest?.p50_w);
  byId("peak-state").replaceChildren();
  if (!highest) return byId("peak-note").replaceChildren(text("waitForecast"));
  if (capacityW !== null) {
    const [mark, name] = highest.p50_w > capacityW ? ["critical", "above"]
      : ahead.some((row) => row.p90_w > capacityW) ? ["warning", "mayExceed"] : ["ok", "within"];
    byId("peak-state").replaceChildren(icon(mark), text(name));
  }
  return byId("peak-note").replaceChildren(text("peakAt", {
    at: dayTime(new Date(highest.start), now), low: number(highest.p10_w / 1000), high: kilowatts(highest.p90_w) }));
}

export function accuracy(pooled) {
  byId("accuracy-value").textContent = percent(pooled.wape);
  byId("accuracy-state").replaceChildren();
  if (pooled.wape === null) return byId("accuracy-note").replaceChildren(text("waitAccuracy"));
  const gain = pooled.wape_seasonal_naive ? 1 - pooled.wape / pooled.wape_seasonal_naive : 0;
  byId("accuracy-state").replaceChildren(icon(gain > 0 ? "ok" : "warning"), gain > 0 ? text("better", { percent: percent(gain, 0) }) : text("worse"));
  return byId("accuracy-note").replaceChildren(text("naive", { value: percent(pooled.wape_seasonal_naive), days: pooled.days }));
}

const URGENCY = { critical: 0, warning: 1, info: 2 };

export function alerts(list, openOnly, now) {
  // What is open: the worst first. The history: as it happened.
  const shown = openOnly ? [...list].sort((a, b) => URGENCY[a.severity] - URGENCY[b.severity]) : list;
  const rows = shown.map((alert) => {
    const opened = new Date(alert.opened_at);
    const mark = alert.closed_at ? ["ok", "muted"] : [alert.severity];
    const state = alert.closed_at ? text("closed", { ago: distance(new Date(alert.closed_at), now) }) : text(alert.severity);
    return element("li", { className: alert.closed_at ? "closed" : alert.severity },
      icon(...mark),
      element("div", {},
        element("p", { className: "head" }, element("strong", {}, state), element("span", {}, text(alert.rule)),
          element("time", { dateTime: alert.opened_at, title: dayTime(opened, now) }, distance(opened, now))),
        element("p", {}, localized(alert, "message"))));
  });
  fill("alert-list", rows, text(openOnly ? "emptyAlertsOpen" : "emptyAlerts"));
}

const LOSS_MARKS = { normal: ["ok"], high: ["warning"], negative: ["warning"], not_computable: ["off", "muted"] };

/** A line from one end of the 80 % interval to the other. */
function unsure(row, width) {
  if (row.unexplained_lo_kwh === null || !row.technical_kwh) return null;
  const perKwh = row.technical_percent / row.technical_kwh;
  const [low, high] = [row.unexplained_lo_kwh, row.unexplained_hi_kwh].map((kwh) => Math.max(0, row.technical_percent + kwh * perKwh));
  return element("i", { className: "unsure", style: { left: width(low).width, width: width(high - low).width } });
}

export function losses(totals, onArea) {
  const computed = totals.filter((row) => row.days > 0);
  const largest = Math.max(1, ...computed.flatMap((row) => [row.loss_percent, row.technical_percent, row.loss_high_percent])) * 1.06;
  const width = (value) => ({ width: `${(Math.max(0, value) / largest) * 100}%` });
  const shown = (value) => (value === null ? "–" : `${number(value, 1)} %`);
  byId("loss-keys").hidden = computed.length === 0;
  byId("loss-keys").replaceChildren(...[["measuredLoss", "area loss"], ["technical", "area technical"], ["unexplained", "area unexplained"], ["interval80", "line unsure"], ["limitMark", "line limit"]]
    .map(([name, kind]) => element("li", {}, element("i", { className: kind }), text(name))));
  const rows = computed.map((row) => element("li", {},
    element("button", { type: "button", className: "name", title: text("showLoad", { area: row.area }), onclick: () => onArea(row.area) }, `${row.area} ${localized(row, "name")}`),
    element("div", { className: "bars" },
      element("span", { className: "stack" }, element("i", { className: "loss", style: width(row.loss_percent) })),
      element("span", { className: "stack" },
        element("i", { className: "technical", style: width(row.technical_percent) }),
        element("i", { className: "unexplained", style: width(row.unexplained_percent) }),
        unsure(row, width)),
      element("i", { className: "limit", style: { left: `${(row.loss_high_percent / largest) * 100}%` } })),
    element("b", {}, shown(row.loss_percent))));
  fill("loss-bars", rows, text("emptyLosses"));
  const heads = ["area", "supplied", "delivered", "lossTotal", "technicalShort", "unexplainedShort", "state"];
  const value = (kwh, share, sure = null) => element("td", {}, number(kwh), element("small", {}, sure, shown(share)));
  const half = (row) => (row.unexplained_lo_kwh === null ? null : element("span", { className: "half" }, `±${number((row.unexplained_hi_kwh - row.unexplained_lo_kwh) / 2)} · `));
  byId("loss-table").hidden = computed.length === 0;
  byId("loss-table").replaceChildren(
    element("caption", { className: "hidden" }, `${text("lossByArea")}, ${text("lossUnit")}`),
    element("thead", {}, element("tr", {}, ...heads.map((name, i) => element("th", { scope: "col" }, text(name), i > 0 && i < 6 ? element("small", {}, i < 3 ? "kWh" : "kWh · %") : null)))),
    element("tbody", {}, ...totals.map((row) => {
      // The period as a whole is judged by its own percentage; one bad day of it is a matter for the alerts.
      const state = row.loss_percent === null ? "not_computable" : row.loss_percent > row.loss_high_percent ? "high" : row.loss_percent < row.loss_low_percent ? "negative" : "normal";
      return element("tr", { className: state },
        element("th", { scope: "row" }, row.area),
        element("td", {}, number(row.supplied_kwh)), element("td", {}, number(row.delivered_kwh)),
        value(row.supplied_kwh === null ? null : row.supplied_kwh - row.delivered_kwh, row.loss_percent),
        value(row.technical_kwh, row.technical_percent), value(row.unexplained_kwh, row.unexplained_percent, half(row)),
        element("td", { className: "state" }, icon(...LOSS_MARKS[state]), text(row.days ? state : "noState")));
    })));
}

const SUSPECTS_SHOWN = 8;

/** Kinds come from the server: one that this page does not know yet is shown by its name. */
function kindText(prefix, kind) {
  const told = text(`${prefix}_${kind}`);
  return told === `${prefix}_${kind}` ? "" : told;
}

/** Whom to visit first: named ones by what is at stake, then the others by how likely they are. */
export function suspects(areas) {
  const searched = areas.filter((area) => area.reason === "");
  const found = areas.flatMap((area) => area.suspects.map((one) => ({ ...one, from_day: area.from_day })));
  found.sort((a, b) => b.named - a.named || (a.named ? Math.abs(b.stolen_kwh) - Math.abs(a.stolen_kwh) : b.score - a.score));
  const day = (name) => shortDay(new Date(`${name}T12:00:00Z`));
  const through = searched.map((area) => area.day).sort().at(-1);
  const unsearched = areas.length - searched.length;
  byId("suspects-note").replaceChildren(
    ...(through ? [element("span", {}, text("searchedThrough", { n: searched.length, day: day(through) }))] : []),
    ...(unsearched ? [element("span", { title: areas.map((area) => area.reason).filter(Boolean).join("\n") }, ` ${text("notSearched", { n: unsearched })}`)] : []));
  const rows = found.slice(0, SUSPECTS_SHOWN).map((one, i) => {
    const too = one.stolen_kwh < 0;
    const [low, high] = too ? [-one.stolen_hi_kwh, -one.stolen_lo_kwh] : [one.stolen_lo_kwh, one.stolen_hi_kwh];
    const since = one.since ? text("since", { at: shortDay(new Date(one.since)) }) : text("sinceBefore", { at: day(one.from_day) });
    const evidence = language === "zh" && one.evidence_zh ? ["zh-CN", one.evidence_zh] : ["en", one.evidence_en];
    return element("li", { className: one.named ? "named" : "" },
      element("b", { className: "rank" }, String(i + 1)),
      element("div", {},
        element("p", { className: "head" }, icon(one.named ? "warning" : "info", one.named ? "warning" : "muted"),
          element("strong", {}, one.point), element("span", {}, kindText("kind", one.kind) || one.kind), element("span", {}, since),
          element("span", { className: "odds" }, text(one.named ? "namedSuspect" : "possibleSuspect"))),
        element("p", {}, element("b", {}, kilowattHours(Math.abs(one.stolen_kwh))), ` ${text(one.kind === "wrong_area" ? "wrongBook" : too ? "tooMuch" : "missingFrom")} `,
          element("small", {}, text("interval80of", { low: number(low), high: number(high) }))),
        element("p", {}, kindText("do", one.kind) || text("do_other")),
        element("p", { className: "quiet", lang: evidence[0] }, evidence[1])));
  });
  fill("suspects-list", rows, text(through ? "emptySuspects" : "waitSuspects"));
  if (found.length > SUSPECTS_SHOWN) byId("suspects-list").append(element("li", { className: "quiet" }, text("moreSuspects", { n: found.length - SUSPECTS_SHOWN })));
}

export function demandResponse(answer, registry, now) {
  byId("dr-total").textContent = answer.reduction_kwh ? text("drTotal", { kwh: kilowattHours(answer.reduction_kwh) }) : "";
  const names = { failed: "failed_", measured: "measured_" };
  const rows = answer.events.map((event) => {
    const [start, end] = [new Date(event.start), new Date(event.end)];
    const running = event.state === "sent" && now >= start && now < end;
    const mark = event.state === "failed" ? ["critical"] : event.state === "measured" ? ["ok"] : running ? ["info"] : ["wait", "info"];
    const area = registry.areas.find((row) => row.area === event.area);
    const saved = event.reduction_kwh === null
      ? element("p", { className: "quiet" }, event.state === "failed" ? "" : text("waitMeasure"))
      : element("p", { className: "saved" }, element("b", {}, kilowattHours(event.reduction_kwh)), ` ${text("reduction")}`,
        element("small", {}, text("baseline", { baseline: kilowattHours(event.baseline_kwh), actual: kilowattHours(event.actual_kwh) })));
    return element("li", {}, icon(...mark), element("div", {},
      element("p", { className: "head" }, element("strong", {}, text(running ? "running" : names[event.state] ?? event.state)),
        element("time", { dateTime: event.start }, distance(start, now))),
      element("p", {}, `${event.area} ${area ? localized(area, "name") : ""}`, element("span", { className: "quiet" }, ` · ${dayTime(start, now)}–${minuteTime(end)} · ${text("pointsShed", { n: event.points.length })}`)),
      saved));
  });
  fill("dr-list", rows, text("emptyDr"));
}

// Shades are steps, and the number stands in the cell: nobody has to tell two reds apart.
const shade = (share) => (share === null ? "none" : share >= 0.9999 ? "full" : share >= 0.98 ? "most" : share >= 0.9 ? "some" : "few");

/** One row of days for each area; what is missing is the number in the cell. */
export function strip(answer, registry, days) {
  const cells = new Map(answer.groups.map((row) => [`${row.area} ${row.day}`, row]));
  const name = (day) => shortDay(new Date(`${day}T12:00:00Z`));
  const cell = (area, day) => {
    const row = cells.get(`${area.area} ${day}`);
    const share = row?.completeness ?? null;
    const lost = row ? row.expected - row.received : 0;
    const why = (row?.missing ?? []).map((one) => `${text(one.reason)} ${number(one.intervals)}`).join(", ");
    const shown = lost === 0 ? "" : lost < 1000 ? number(lost) : `${number(lost / 1000)}k`;
    return element("td", { className: shade(share), title: `${area.area} ${name(day)}: ${share === null ? text("noState") : completeness(share)}${why ? ` · ${why}` : ""}` }, shown);
  };
  byId("strips").hidden = answer.total.expected === 0;
  byId("strip").replaceChildren(
    element("caption", { className: "hidden" }, text("stripCaption")),
    element("thead", {}, element("tr", {}, element("th", { scope: "col" }, text("area")),
      ...days.map((day) => element("th", { scope: "col", title: name(day) }, String(Number(day.slice(8))))))),
    element("tbody", {}, ...registry.areas.map((area) => element("tr", {},
      element("th", { scope: "row", title: localized(area, "name") }, area.area, element("small", {}, localized(area, "name"))),
      ...days.map((day) => cell(area, day))))));
  byId("strip-keys").replaceChildren(...[["full", "100 %"], ["most", "≥ 98 %"], ["some", "≥ 90 %"], ["few", "< 90 %"], ["none", text("notExpected")]]
    .map(([kind, label]) => element("li", {}, element("i", { className: `area ${kind}` }), label)));
  byId("gaps-total").textContent = answer.total.expected ? text("missingOf", { n: number(answer.total.expected - answer.total.received), days: days.length }) : "";
}

const GAP_MARKS = { gateway_offline: ["critical"], meter_silent: ["critical"], backfilling: ["wait", "info"], not_in_memory: ["off", "muted"], meter_refuses: ["off", "muted"] };
const GAPS_SHOWN = 12;

/** The same gap of many points of a gateway is one line: what is wrong is the gateway. The most missing first. */
export function gaps(answer, now) {
  const groups = new Map();
  for (const gap of answer.gaps) {
    const key = [gap.gateway, gap.start, gap.end, gap.reason].join(" ");
    if (!groups.has(key)) groups.set(key, []);
    groups.get(key).push(gap);
  }
  const missing = (group) => group.reduce((sum, gap) => sum + gap.intervals, 0);
  const sorted = [...groups.values()].sort((a, b) => missing(b) - missing(a));
  const rows = sorted.slice(0, GAPS_SHOWN).map((group) => {
    const [gap] = group;
    const [start, end] = [new Date(gap.start), new Date(gap.end)];
    const where = group.length === 1 ? gap.point : text("pointsAt", { n: number(group.length), gateway: gap.gateway });
    // A group's command is that of all its meters.
    const run = gap.run && group.length > 1 && gap.run.includes(" backfill ") ? gap.run.replace(` ${gap.meter} `, ` ${group.map((one) => one.meter).sort().join(" ")} `) : gap.run;
    const asked = gap.asked ? element("p", { className: "quiet" }, text("askedAgain", { ago: distance(new Date(gap.asked.at), now), said: gap.asked.said ?? text(gap.asked.outcome ?? "noAnswer") })) : null;
    return element("li", {}, icon(...(GAP_MARKS[gap.reason] ?? ["warning"])), element("div", {},
      element("p", { className: "head" }, element("strong", {}, text(gap.reason)), element("span", {}, `${where} · ${text("intervalsMissing", { n: number(missing(group)) })}`),
        element("time", { dateTime: gap.start, title: dayTime(start, now) }, distance(start, now))),
      element("p", {}, element("b", {}, now - end < 2 * QUARTER_MS ? text("since", { at: dayTime(start, now) })
        : `${dayTime(start, now)}–${shortDay(start) === shortDay(end) ? minuteTime(end) : dayTime(end, now)}`), ` ${text(`${gap.reason}_do`)}`),
      asked,
      run?.startsWith("meterctl") ? element("p", {}, text("atGateway")) : null,
      run ? element("p", { className: "run" }, element("code", {}, run), element("button", { type: "button", title: text("copy"), onclick: (event) => copy(event.target, run) }, text("copy"))) : null));
  });
  if (sorted.length > GAPS_SHOWN || answer.next) rows.push(element("li", { className: "more quiet" }, text("moreGaps", { n: number(sorted.length - GAPS_SHOWN) })));
  fill("gaps-list", rows, text("emptyGaps"));
}

async function copy(button, words) {
  try {
    await navigator.clipboard.writeText(words);
    button.textContent = text("copied");
  } catch { // no clipboard without TLS: the words are selected instead
    getSelection().selectAllChildren(button.previousElementSibling);
  }
}

/** Grouped choice of series; keeps `chosen` when it is still there. */
export function seriesChooser(registry, chosen) {
  const group = (label, options) => {
    const made = element("optgroup", { label: text(label) });
    made.append(...options.map(([value, name]) => element("option", { value, textContent: name, selected: value === chosen })));
    return made;
  };
  byId("series").replaceChildren(
    group("substation", [["substation:S1", text("wholeSubstation")]]),
    group("feeders", registry.feeders.map((row) => [`feeder:${row.feeder}`, `${row.feeder} ${localized(row, "name")}`])),
    group("areas", registry.areas.map((row) => [`area:${row.area}`, `${row.area} ${localized(row, "name")}`])));
}
