// Numbers, times and elements. Times are shown in the site's zone, not the browser's: that is where the shift is.

import { language, text } from "./strings.js";

export const MISSING = "–";
const MINUS = "−";
let zone = "UTC";
export const setZone = (name) => { zone = name; };
export const siteZone = () => zone;

const locale = () => (language === "zh" ? "zh-CN" : "en-GB");

export function number(value, digits = 0) {
  if (value === null || value === undefined || Number.isNaN(value)) return MISSING;
  const shown = new Intl.NumberFormat(locale(), { minimumFractionDigits: digits, maximumFractionDigits: digits }).format(value);
  return shown.replace(/^-(?=[0.,]*$)/, "").replace("-", MINUS);
}

const digitsFor = (value) => (Math.abs(value) < 100 ? 1 : 0);
export const kilowatts = (w) => (w === null || w === undefined ? MISSING : `${number(w / 1000, digitsFor(w / 1000))} kW`);
export const kilowattHours = (kwh) => (kwh === null || kwh === undefined ? MISSING : `${number(kwh, digitsFor(kwh))} kWh`);
export const percent = (share, digits = 1) => (share === null || share === undefined ? MISSING : `${number(share * 100, digits)} %`);
/** Rounded down: 100 % is shown only where nothing is missing. */
export const completeness = (share) => (share === null || share === undefined ? MISSING : percent(Math.floor(share * 1e4) / 1e4, share === 1 ? 0 : 2));

const formats = new Map();
function formatter(options) {
  const name = JSON.stringify([locale(), zone, options]);
  if (!formats.has(name)) formats.set(name, new Intl.DateTimeFormat(locale(), { timeZone: zone, hourCycle: "h23", ...options }));
  return formats.get(name);
}
export const clockTime = (at) => formatter({ hour: "2-digit", minute: "2-digit", second: "2-digit" }).format(at);
export const minuteTime = (at) => formatter({ hour: "2-digit", minute: "2-digit" }).format(at);
export const dayName = (at) => formatter({ weekday: "short", day: "numeric", month: "short" }).format(at);
export const shortDay = (at) => formatter({ day: "numeric", month: "short" }).format(at);
export const dayTime = (at, now) => (shortDay(at) === shortDay(now) ? minuteTime(at) : `${shortDay(at)} ${minuteTime(at)}`);
/** YYYY-MM-DD of the business day `days` from the one `at` falls in. */
export function businessDay(at, days = 0) {
  const shifted = new Date(at.getTime() + days * 86_400_000);
  return new Intl.DateTimeFormat("sv-SE", { timeZone: zone }).format(shifted);
}

/** "12 min ago", "in 8 min". */
export function distance(at, now) {
  const minutes = Math.round(Math.abs(now - at) / 60_000);
  if (minutes < 1) return text("justNow");
  const time = minutes < 100 ? text("minutes", { n: minutes })
    : minutes < 2880 ? text("hours", { n: Math.round(minutes / 60) }) : text("daysN", { n: Math.round(minutes / 1440) });
  return text(at > now ? "inTime" : "ago", { time });
}

/** An element with properties and children; strings become text, so nothing from the server is ever markup. */
export function element(tag, properties = {}, ...children) {
  const made = document.createElement(tag);
  for (const [name, value] of Object.entries(properties)) {
    if (name === "style") for (const [rule, size] of Object.entries(value)) made.style.setProperty(rule, size);
    else if (name.startsWith("aria-") || name === "role" || name === "scope" || name === "colspan") made.setAttribute(name, value);
    else made[name] = value;
  }
  made.append(...children.filter((child) => child !== null && child !== undefined));
  return made;
}

const SVG = "http://www.w3.org/2000/svg";
export function icon(name, kind = name) {
  const svg = document.createElementNS(SVG, "svg");
  svg.setAttribute("class", `icon ${kind}`);
  svg.setAttribute("aria-hidden", "true");
  const use = document.createElementNS(SVG, "use");
  use.setAttribute("href", `#i-${name}`);
  svg.append(use);
  return svg;
}

export const byId = (id) => document.getElementById(id);
