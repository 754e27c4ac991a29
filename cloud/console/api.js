// Asking the API. The key lives in this window's session storage and nowhere else.

const STORED = "gridloom.key";
const TIMEOUT_MS = 10_000;

/** `status` 0: the server could not be reached. `problem`: the RFC 9457 document, when there is one. */
export class ApiError extends Error {
  constructor(status, problem) {
    super(problem?.detail ?? `HTTP ${status}`);
    this.status = status;
    this.kind = problem?.type?.split(":").pop() ?? "";
  }
}

/** Take the key out of `#key=…` once, so that it stays neither in the address bar nor in the history. */
export function adoptKeyFromAddress() {
  const key = new URLSearchParams(location.hash.slice(1)).get("key");
  if (!key) return;
  setKey(key);
  history.replaceState(null, "", location.pathname + location.search);
}

export const setKey = (key) => sessionStorage.setItem(STORED, key.trim());
export const forgetKey = () => sessionStorage.removeItem(STORED);
export const hasKey = () => sessionStorage.getItem(STORED) !== null;

export async function ask(path, query = {}) {
  const asked = new URLSearchParams(Object.entries(query).filter(([, value]) => value !== null && value !== undefined));
  let answer;
  try {
    // encodeURIComponent: a header may hold Latin-1 only, and a mistyped key may hold anything.
    const headers = { Authorization: `Bearer ${encodeURIComponent(sessionStorage.getItem(STORED) ?? "")}` };
    answer = await fetch(`${path}?${asked}`, { headers, signal: AbortSignal.timeout(TIMEOUT_MS) });
    if (answer.ok) return await answer.json();
  } catch {
    throw new ApiError(0, null);
  }
  throw new ApiError(answer.status, await answer.json().catch(() => null));
}
