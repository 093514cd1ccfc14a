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
  return answer(await fetch(address, options));
}

export async function tell(path, body = {}) {
  const headers = { "Content-Type": "application/json" };
  return answer(await fetch(path, { method: "POST", headers, body: JSON.stringify(body) }));
}

async function answer(response) {
  let content = {};
  try {
    content = await response.json();
  } catch {
    throw new Error(`the server answered ${response.status}; is xstreamer review still running?`);
  }
  if (!response.ok) throw new Error(content.error ?? `the server answered ${response.status}`);
  return content;
}

export const aborted = (error) => error.name === "AbortError";
