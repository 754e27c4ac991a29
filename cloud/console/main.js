// Asks every few seconds for one small line; asks for the rest only when that line says there is something new.

import { ApiError, adoptKeyFromAddress, ask, forgetKey, hasKey, setKey } from "./api.js";
import * as chart from "./chart.js";
import { businessDay, byId, clockTime, setZone } from "./format.js";
import { language, setLanguage, text, translatePage } from "./strings.js";
import * as views from "./views.js";

const POLL_MS = 3000;
const STALE_MS = 30_000; // ask for everything this often, whatever the line says
const HORIZON_MS = 24 * 3_600_000;
const DAY_MS = 86_400_000;
const STRIP_DAYS = 14;

const choice = { series: "substation:S1", days: "1", losses: "7", alerts: "open" };
let heard = null; // the newest status, and when it came: {status, at: performance.now()}
let known = null; // the newest details, all from one round
let registry = null;
let failure = null;
let timer = 0;
let round = 0; // a newer round makes an older one's answers void
let due = true;
let fetchedMs = 0;

const siteNow = () => new Date(Date.parse(heard.status.now) + (performance.now() - heard.at) * heard.status.rate);

async function fetchDetails(status) {
  const now = new Date(status.now);
  const days = Number(choice.days);
  const from = new Date(now - days * DAY_MS).toISOString();
  const to = new Date(+now + HORIZON_MS).toISOString();
  if (registry?.points.length !== status.points) registry = await ask("/v1/registry");
  const [loads, forecasts, losses, suspects, alerts, dr, collected, gateways, accuracy, daily, gaps] = await Promise.all([
    ask("/v1/loads", { series: choice.series, from, to: now.toISOString() }),
    ask("/v1/forecasts", { series: choice.series, from, to }),
    ask("/v1/losses", { from: businessDay(now, -Number(choice.losses)), to: businessDay(now) }),
    ask("/v1/suspects"),
    ask("/v1/alerts", { state: choice.alerts, limit: 100 }),
    ask("/v1/dr", { limit: 50 }),
    ask("/v1/completeness", { by: "area" }),
    ask("/v1/gateways"),
    ask("/v1/forecasts/accuracy"),
    ask("/v1/completeness", { by: "area", daily: true, from: businessDay(now, 1 - STRIP_DAYS) }),
    ask("/v1/completeness/gaps", { from: businessDay(now, 1 - STRIP_DAYS), limit: 1000 }),
  ]);
  return { loads, forecasts, losses, suspects, alerts, dr, collected, gateways, accuracy, daily, gaps, days, revision: status.revision };
}

async function poll() {
  clearTimeout(timer);
  if (!hasKey()) return show();
  const mine = ++round;
  try {
    const status = await ask("/v1/status");
    if (mine !== round) return;
    heard = { status, at: performance.now() };
    setZone(status.zone);
    if (due || status.revision !== known?.revision || performance.now() - fetchedMs > STALE_MS) {
      const details = await fetchDetails(status);
      if (mine !== round) return;
      known = details;
      fetchedMs = performance.now();
      due = false;
    }
    failure = null;
  } catch (error) {
    if (mine !== round) return;
    if (!(error instanceof ApiError)) throw error;
    failure = error;
    if (error.status === 401) {
      forgetKey();
      known = heard = registry = null;
    }
  }
  if (hasKey()) timer = setTimeout(poll, POLL_MS);
  show();
}

function showBanner() {
  const at = known && heard ? clockTime(new Date(heard.status.now)) : text("nothingYet");
  const banner = byId("banner");
  banner.hidden = failure === null || failure.status === 401;
  if (banner.hidden) return;
  const names = { "database-unavailable": "databaseAway", "database-not-migrated": "notMigrated" };
  banner.textContent = failure.status === 0 ? text("unreachable", { at })
    : text(names[failure.kind] ?? "failed", { at, detail: failure.message });
}

function seriesName() {
  const [kind, id] = choice.series.split(":");
  const row = registry[`${kind}s`]?.find((candidate) => candidate[kind] === id);
  return row ? `${id} ${row[`name_${language}`]}` : text("wholeSubstation");
}

/** Draw everything from what is known. */
function show(rebuild = false) {
  byId("ask").hidden = hasKey();
  byId("forget").hidden = !hasKey();
  byId("refused").textContent = failure?.status === 401 ? text("refused") : "";
  byId("language").textContent = text("other");
  byId("language").title = text("otherTitle");
  byId("language").lang = language === "zh" ? "en" : "zh-CN";
  byId("board").hidden = !hasKey() || known === null;
  byId("line").hidden = byId("clock").hidden = heard === null;
  document.body.classList.toggle("stale", failure !== null);
  showBanner();
  if (known === null || heard === null) return;

  const { status } = heard;
  const now = siteNow();
  views.clock(now, status.rate);
  views.line(status);
  views.collected(known.collected.total, known.collected.groups, registry, known.gateways.gateways, status);
  const { loads, capacity_w: capacityW } = known.loads;
  const { forecasts } = known.forecasts;
  const name = seriesName();
  views.loadNow(loads, capacityW, name);
  views.peak(forecasts, capacityW, now);
  views.accuracy(known.accuracy.pooled);
  views.alerts(known.alerts.alerts, choice.alerts === "open", now);
  views.losses(known.losses.totals, (area) => choose("series", `area:${area}`));
  views.suspects(known.suspects.areas);
  views.demandResponse(known.dr, registry, now);
  views.strip(known.daily, registry, Array.from({ length: STRIP_DAYS }, (_, i) => businessDay(now, 1 - STRIP_DAYS + i)));
  views.gaps(known.gaps, now);
  if (document.activeElement !== byId("series")) views.seriesChooser(registry, choice.series);
  views.segments("range", { 1: text("day1"), 3: text("day3"), 7: text("day7") }, choice.days, (days) => choose("days", days));
  views.segments("loss-range", { 1: text("yesterday"), 7: text("days7"), 35: text("days35") }, choice.losses, (days) => choose("losses", days));
  views.segments("alert-filter", { open: text("open_"), all: text("all") }, choice.alerts, (state) => choose("alerts", state));
  byId("fetched").textContent = text("fetched", { at: clockTime(new Date(status.now)) });
  const s = now.getTime() / 1000;
  chart.update({ loads, forecasts, capacityW, now, name, window: [s - known.days * 86_400, s + HORIZON_MS / 1000] }, rebuild);
}

function choose(what, value) {
  choice[what] = value;
  due = true;
  poll();
}

byId("ask").addEventListener("submit", (event) => {
  event.preventDefault();
  setKey(byId("key").value);
  byId("key").value = "";
  failure = null;
  due = true;
  poll();
});
byId("forget").addEventListener("click", () => {
  forgetKey();
  round++;
  known = heard = registry = failure = null;
  show();
});
byId("language").addEventListener("click", () => {
  setLanguage(language === "zh" ? "en" : "zh");
  translatePage();
  show(true);
});
byId("series").addEventListener("change", (event) => {
  event.target.blur();
  choose("series", event.target.value);
});
addEventListener("hashchange", () => { adoptKeyFromAddress(); due = true; poll(); });
document.addEventListener("visibilitychange", () => (document.hidden ? clearTimeout(timer) : poll()));
setInterval(() => { if (heard && failure === null && !document.hidden) views.clock(siteNow(), heard.status.rate); }, 1000);

adoptKeyFromAddress();
translatePage();
poll();
