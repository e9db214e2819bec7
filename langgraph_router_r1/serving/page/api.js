// Requests to the server that the page came from.

let key = ""; // kept in memory only

export function useKey(text) {
  key = text;
}

/** Return the response; a problem is an Error with the server's words and the `status` of its reply. */
async function request(path, body, signal) {
  const headers = key ? { Authorization: `Bearer ${key}` } : {};
  if (body) headers["Content-Type"] = "application/json";
  const method = body ? "POST" : "GET";
  const response = await fetch(path, { method, headers, body: body && JSON.stringify(body), signal }).catch(() => {
    throw new Error("The server does not answer. Is it running?");
  });
  if (response.ok) return response;
  const problem = await response.json().catch(() => null);
  const message = problem?.error?.message ?? `The server answered with status ${response.status}.`;
  throw Object.assign(new Error(message), { status: response.status });
}

export const get = async (path) => (await request(path)).json();
export const post = async (path, body) => (await request(path, body)).json();

/** Post a body; yield the events of the reply while they come. */
export async function* events(path, body, signal) {
  const response = await request(path, body, signal);
  const reader = response.body.pipeThrough(new TextDecoderStream()).getReader();
  let text = "";
  for (;;) {
    const { value, done } = await reader.read();
    if (done) return;
    const blocks = (text + value).split("\n\n");
    text = blocks.pop(); // not complete yet
    for (const block of blocks) if (block.startsWith("data: ")) yield JSON.parse(block.slice(6));
  }
}
