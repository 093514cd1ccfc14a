// Questions to the server. A newer question of a kind aborts the one before, so that late answers never overwrite.

const running = new Map();

export async function ask(path, question = null, kind = "") {
  const address = question ? `${path}?q=${encodeURIComponent(JSON.stringify(question))}` : path;
  const options = {};
  if (kind) {
    running.get(kind)?.abort();
    const control = new AbortController();
    running.set(kind, control);
    options.signal = control.signal;
  }
  return answer(address, options);
}

export async function tell(path, body = {}) {
  const headers = { "Content-Type": "application/json" };
  return answer(path, { method: "POST", headers, body: JSON.stringify(body) });
}

async function answer(address, options) {
  const response = await fetch(address, options).catch((error) => {
    if (aborted(error)) throw error;
    throw new Error("the server does not answer; is xstreamer review still running?");
  });
  const content = await response.json().catch((error) => {
    if (aborted(error)) throw error;
    throw new Error(`the server answered ${response.status}; is xstreamer review still running?`);
  });
  if (!response.ok) throw new Error(content.error ?? `the server answered ${response.status}`);
  return content;
}

export const aborted = (error) => error.name === "AbortError";

// An act that never runs twice at once: while it runs, calls are one more run at its end.
export function oneAtATime(act) {
  let current = null;
  let again = false;
  const run = async () => {
    try {
      do {
        again = false;
        await act();
      } while (again);
    } finally {
      current = null;
    }
  };
  return () => {
    again = current !== null;
    current ??= run();
    return current;
  };
}

// Acts that run one after another in the order in which they were asked for.
let last = Promise.resolve();
export const inTurn = (act) => (...given) => (last = last.then(() => act(...given)));
