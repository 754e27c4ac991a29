// Every text of the console, in both languages. A test holds the two against each other.

const en = {
  docs: "API", forget: "Lock", forgetTitle: "Forget the API key in this window",
  other: "中文", otherTitle: "切换到中文",
  askTitle: "This console needs an API key", askText: "It is kept in this browser window only and forgotten when the window closes.",
  key: "API key", open: "Open", askHow: "To make one, run:", refused: "This key is unknown or revoked. Check it and try again.",
  unreachable: "The server does not answer. Shown is what was known at {at}; trying again every few seconds.",
  databaseAway: "The database does not answer. Shown is what was known at {at}; trying again every few seconds.",
  notMigrated: "The database has no tables yet; run: gridloom migrate",
  failed: "The server refused: {detail}", nothingYet: "(nothing yet)",
  simulated: "simulated ×{rate}", simulatedTitle: "Simulated clock: {rate} s pass in one real second",
  gateways: "Gateways", gatewaysOf: "{online} of {all} online", noGateways: "no gateways registered",
  alertsOpen: "Open alerts", criticalOf: "{critical} critical", drNow: "Demand response",
  drnone: "none", drplanned: "planned", drrunning: "running", drover: "none running",
  completeness: "Collection completeness", intervalsOf: "{received} of {expected} intervals", pointsOf: "{points} metering points",
  toFetch: "backfilling: {left} marks to fetch", online: "online", offline: "gateway offline", neverSeen: "gateway never seen",
  waitCompleteness: "Waiting for the first readings.",
  loadNow: "Load now", ofCapacity: "{percent} of the {capacity} limit", at: "interval {from}–{to}", waitLoad: "Waiting for the first load.",
  peakNext: "Next peak, forecast", within: "below the limit", above: "above the limit", mayExceed: "p90 above the limit",
  peakAt: "{at}, band {low}–{high}", waitForecast: "Waiting for the first forecast.", noCapacity: "no limit registered",
  accuracy: "Forecast error", naive: "naive {value}, days: {days}", better: "{percent} less than naive", worse: "worse than naive",
  waitAccuracy: "Waiting for a day that was forecast to end.",
  loadForecast: "Load and forecast", series: "Series", range: "Time range", substation: "Substation", feeders: "Feeders", areas: "Transformer areas",
  wholeSubstation: "Substation S1",
  day1: "1 day", day3: "3 days", day7: "7 days", yesterday: "Yesterday", days7: "7 days", days35: "35 days",
  measured: "Measured", forecast: "Forecast p50", band: "p10–p90", capacity: "Limit", now: "now",
  chartLabel: "{series}: measured load and forecast, in kW. Newest {value}.",
  emptyLoad: "Waiting for intervals of this series: gateways backfill first, then work derives them.",
  alerts: "Alerts", open_: "Open", all: "All", emptyAlertsOpen: "No open alerts. Rules watch forecast peaks, loss, silent meters and clocks.",
  emptyAlerts: "No alerts yet. Rules watch forecast peaks, loss, silent meters and clocks.",
  critical: "Critical", warning: "Warning", info: "Note", closed: "Closed {ago}", since: "since {at}",
  forecast_above_capacity: "Forecast above limit", loss_out_of_range: "Loss out of range", meter_silent: "Meter silent", clock_drift: "Clock drift", completeness_low: "Collection incomplete", forecast_worse_than_naive: "Forecast worse than last week's load",
  justNow: "just now", ago: "{time} ago", inTime: "in {time}", minutes: "{n} min", hours: "{n} h", daysN: "{n} d",
  lossByArea: "Loss by transformer area", technical: "Technical (calculated)", unexplained: "Unexplained", measuredLoss: "Measured loss", limitMark: "Upper end of normal",
  area: "Area", supplied: "Supplied", delivered: "Delivered", lossTotal: "Measured", technicalShort: "Technical", unexplainedShort: "Unexplained", state: "State",
  normal: "normal", high: "too high", negative: "negative", not_computable: "not computable", noState: "no data",
  emptyLosses: "Waiting for the first day with readings of every meter of an area.", showLoad: "Show the load of {area}", lossUnit: "kWh and % of supplied",
  dr: "Demand response", drTotal: "{kwh} saved in all", emptyDr: "No events. A forecast peak above the limit plans one.",
  planned: "Planned", sent: "Sent to gateway", done: "Over, to be measured", failed_: "Failed", measured_: "Measured", running: "Running",
  reduction: "saved", baseline: "Baseline {baseline}, actual {actual}", pointsShed: "loads shed: {n}", waitMeasure: "measured after the last interval ends",
  missingData: "Missing data", missingOf: "{n} intervals missing in {days} days", stripCaption: "Intervals missing by area and day", notExpected: "nothing expected",
  pointsAt: "{n} points of {gateway}", intervalsMissing: "{n} intervals", askedAgain: "Asked again {ago}: {said}.", noAnswer: "no answer yet",
  atGateway: "The gateway is offline now. On site, run:", copy: "Copy", copied: "Copied", moreGaps: "and {n} more; GET /v1/completeness/gaps lists them all", emptyGaps: "Nothing is missing. Gaps appear five minutes after a mark that did not come.",
  quarantined: "Quarantined", quarantined_do: "The rows came and were set aside: look why, then replay them.",
  evicted: "Gateway queue full", evicted_do: "The gateway dropped these when its disk was full. Ask the meters again.",
  clock: "Clock was set", clock_do: "A clock jumped over these marks; they may never have been.",
  meter_silent_do: "The meter does not answer. Check its supply, address and wiring.",
  gateway_offline: "Gateway offline", gateway_offline_do: "The gateway was away. It reads meters' memory when it is back.",
  meter_refuses: "Meter refuses", meter_refuses_do: "The meter was asked again and refused. Nothing more will come.",
  not_in_memory: "Not in the meter's memory", not_in_memory_do: "The meter was asked again and has it no more.",
  backfilling: "Being fetched", backfilling_do: "The gateway is reading meters' memory; no action is needed.",
  unknown: "Reason unknown", unknown_do: "Nobody said why. The gateway is asked once by itself; to ask again:",
  footer: "Intervals are labelled by their start. Positive power is import.", fetched: "Updated {at}.",
};

const zh = {
  docs: "接口", forget: "锁定", forgetTitle: "清除本窗口中的 API 密钥",
  other: "English", otherTitle: "Switch to English",
  askTitle: "请输入 API 密钥", askText: "密钥只保存在当前浏览器窗口，关闭窗口即清除。",
  key: "API 密钥", open: "打开", askHow: "创建密钥请运行：", refused: "密钥不存在或已吊销，请检查后重试。",
  unreachable: "服务器无响应。当前显示的是 {at} 的数据，每隔几秒自动重试。",
  databaseAway: "数据库无响应。当前显示的是 {at} 的数据，每隔几秒自动重试。",
  notMigrated: "数据库尚未建表，请运行：gridloom migrate",
  failed: "服务器拒绝了请求：{detail}", nothingYet: "（尚无）",
  simulated: "仿真 ×{rate}", simulatedTitle: "仿真时钟：真实 1 秒等于仿真 {rate} 秒",
  gateways: "网关", gatewaysOf: "在线 {online} / {all}", noGateways: "尚未登记网关",
  alertsOpen: "未恢复告警", criticalOf: "紧急 {critical}", drNow: "需求响应",
  drnone: "无", drplanned: "已计划", drrunning: "执行中", drover: "无执行中事件",
  completeness: "采集成功率", intervalsOf: "已采 {received} / 应采 {expected} 个时段", pointsOf: "{points} 个计量点",
  toFetch: "补采中：剩余 {left} 点", online: "在线", offline: "网关离线", neverSeen: "网关从未上线",
  waitCompleteness: "等待首批读数。",
  loadNow: "当前负荷", ofCapacity: "限值 {capacity} 的 {percent}", at: "时段 {from}–{to}", waitLoad: "等待首个负荷数据。",
  peakNext: "下一峰值（预测）", within: "低于限值", above: "超过限值", mayExceed: "p90 超过限值",
  peakAt: "{at}，区间 {low}–{high}", waitForecast: "等待首次预测。", noCapacity: "未登记限值",
  accuracy: "预测误差", naive: "周期朴素法 {value}，共 {days} 天", better: "比朴素法低 {percent}", worse: "不如朴素法",
  waitAccuracy: "等待首个有预测的日子结束。",
  loadForecast: "负荷与预测", series: "对象", range: "时间范围", substation: "变电站", feeders: "馈线", areas: "台区",
  wholeSubstation: "变电站 S1",
  day1: "1 天", day3: "3 天", day7: "7 天", yesterday: "昨日", days7: "7 天", days35: "35 天",
  measured: "实测", forecast: "预测 p50", band: "p10–p90", capacity: "限值", now: "现在",
  chartLabel: "{series}：实测负荷与预测，单位 kW。最新值 {value}。",
  emptyLoad: "等待该对象的时段数据：网关先补采，再由 work 计算。",
  alerts: "告警", open_: "未恢复", all: "全部", emptyAlertsOpen: "没有未恢复的告警。规则监视预测峰值、线损、失联电表和时钟。",
  emptyAlerts: "尚无告警。规则监视预测峰值、线损、失联电表和时钟。",
  critical: "紧急", warning: "警告", info: "提示", closed: "{ago}恢复", since: "始于 {at}",
  forecast_above_capacity: "预测超限", loss_out_of_range: "线损异常", meter_silent: "电表失联", clock_drift: "时钟偏差", completeness_low: "采集不完整", forecast_worse_than_naive: "预测不及上周同日",
  justNow: "刚刚", ago: "{time}前", inTime: "{time}后", minutes: "{n} 分钟", hours: "{n} 小时", daysN: "{n} 天",
  lossByArea: "台区线损", technical: "技术线损（计算）", unexplained: "不明损耗", measuredLoss: "统计线损", limitMark: "正常范围上限",
  area: "台区", supplied: "供电量", delivered: "售电量", lossTotal: "统计线损", technicalShort: "技术线损", unexplainedShort: "不明损耗", state: "状态",
  normal: "正常", high: "偏高", negative: "负线损", not_computable: "不可计算", noState: "无数据",
  emptyLosses: "等待首个台区内所有电表数据齐全的日子。", showLoad: "查看 {area} 的负荷", lossUnit: "kWh 及占供电量百分比",
  dr: "需求响应", drTotal: "累计削减 {kwh}", emptyDr: "尚无事件。预测峰值超过限值时自动生成。",
  planned: "已计划", sent: "已下发网关", done: "已结束，待核算", failed_: "失败", measured_: "已核算", running: "执行中",
  reduction: "削减", baseline: "基线 {baseline}，实际 {actual}", pointsShed: "切除负荷 {n} 个", waitMeasure: "最后一个时段结束后核算",
  missingData: "采集缺口", missingOf: "{days} 天内缺 {n} 个时段", stripCaption: "各台区每日缺失时段数", notExpected: "无应采",
  pointsAt: "{gateway} 的 {n} 个计量点", intervalsMissing: "缺 {n} 个时段", askedAgain: "{ago}已再次补采：{said}。", noAnswer: "尚无回复",
  atGateway: "网关当前离线，请到现场运行：", copy: "复制", copied: "已复制", moreGaps: "另有 {n} 项；GET /v1/completeness/gaps 可列出全部", emptyGaps: "没有缺口。整点数据未到五分钟后会显示在这里。",
  quarantined: "数据被隔离", quarantined_do: "数据已到但被隔离：查明原因后重放。",
  evicted: "网关队列溢出", evicted_do: "网关磁盘满时丢弃了这些数据，请重新向电表补采。",
  clock: "对时跳变", clock_do: "时钟跳过了这些时刻，数据可能从未产生。",
  meter_silent_do: "电表无应答，请检查供电、通信地址和接线。",
  gateway_offline: "网关离线", gateway_offline_do: "网关当时不在线，恢复后会自动从电表补采。",
  meter_refuses: "电表拒绝", meter_refuses_do: "已再次补采，电表拒绝，不会再有数据。",
  not_in_memory: "电表内已无数据", not_in_memory_do: "已再次补采，电表中已不保存。",
  backfilling: "补采中", backfilling_do: "网关正在从电表补采，无需处理。",
  unknown: "原因不明", unknown_do: "没有已知原因。系统会自动补采一次，如需再次补采：",
  footer: "时段以起始时刻标记，正功率为用电。", fetched: "更新于 {at}。",
};

export const strings = { en, zh };

const stored = localStorage.getItem("gridloom.language");
export let language = stored in strings ? stored : navigator.language.toLowerCase().startsWith("zh") ? "zh" : "en";

export function setLanguage(wanted) {
  language = wanted;
  localStorage.setItem("gridloom.language", wanted);
}

/** The text of `name` with its {holes} filled. An unknown name is shown as it is: rules come from the server. */
export function text(name, holes = {}) {
  const pattern = strings[language][name] ?? name;
  return pattern.replace(/\{(\w+)\}/g, (_, hole) => holes[hole]);
}

/** Fill in what index.html leaves to the language. */
export function translatePage() {
  document.documentElement.lang = language === "zh" ? "zh-CN" : "en";
  for (const element of document.querySelectorAll("[data-text]")) element.textContent = text(element.dataset.text);
  for (const element of document.querySelectorAll("[data-title]")) element.title = text(element.dataset.title);
  for (const element of document.querySelectorAll("[data-label]")) element.ariaLabel = text(element.dataset.label);
}
