// The server's API, as this page uses it. Faults are ApiError (the server answered) or LostServer (it did not, or broke off).

export class ApiError extends Error {
  constructor(message, status) {
    super(message);
    this.status = status;
  }
}
export class LostServer extends Error {}

function headers(key) {
  const all = {'Content-Type': 'application/json'};
  if (key) all.Authorization = 'Bearer ' + key;
  return all;
}

async function ask(path, options) {
  let reply;
  try {
    reply = await fetch(path, {cache: 'no-store', ...options});
  } catch (error) {
    if (error.name === 'AbortError') throw error;
    throw new LostServer('The server does not answer.');
  }
  if (reply.ok) return reply;
  let message = `The server answered with ${reply.status}.`;
  try {
    message = (await reply.json()).error.message;
  } catch { // no body of the API
  }
  throw new ApiError(message, reply.status);
}

export async function models(key) {
  const reply = await ask('/v1/models', {headers: headers(key)});
  return (await reply.json()).data.map((model) => model.id);
}

// Prometheus text; needs no key.
export async function metrics() {
  return (await ask('/metrics', {})).text();
}

export async function isThere() {
  try {
    await ask('/health', {});
    return true;
  } catch {
    return false;
  }
}

// Gives the data of each event of a stream.
async function* events(body) {
  const reader = body.pipeThrough(new TextDecoderStream()).getReader();
  let rest = '';
  for (;;) {
    const {value, done} = await reader.read();
    if (done) return;
    const parts = (rest + value).split('\n\n');
    rest = parts.pop();
    for (const part of parts) {
      const lines = part.split('\n').filter((line) => line.startsWith('data:'));
      if (lines.length > 0) yield lines.map((line) => line.slice(5).trimStart()).join('\n');
    }
  }
}

// Calls onChunk with each chunk of the answer.
export async function streamChat(body, {key, signal, onChunk}) {
  const reply = await ask('/v1/chat/completions', {
    method: 'POST',
    headers: headers(key),
    signal,
    body: JSON.stringify({...body, stream: true, stream_options: {include_usage: true}}),
  });
  try {
    for await (const data of events(reply.body)) {
      if (data === '[DONE]') return;
      const chunk = JSON.parse(data);
      if (chunk.error) throw new ApiError(chunk.error.message, 500);
      onChunk(chunk);
    }
  } catch (error) {
    if (error.name === 'AbortError' || error instanceof ApiError) throw error;
  }
  throw new LostServer('The answer was cut off: the connection to the server broke.');
}
