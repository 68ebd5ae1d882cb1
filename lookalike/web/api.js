// The server, as functions. Every failure is a Failure with the server's own message and hint.

export class Failure extends Error {
  constructor(status, code, message, hint) {
    super(message);
    this.status = status;
    this.code = code;
    this.hint = hint;
  }
}

let askToken = null;

/** Calls `ask` for the token when the server wants one; the request is then sent again. */
export function onLocked(ask) {
  askToken = ask;
}

async function call(method, path, { json, form, signal } = {}) {
  const options = { method, signal, headers: {}, credentials: "same-origin" };
  if (json !== undefined) {
    options.headers["Content-Type"] = "application/json";
    options.body = JSON.stringify(json);
  } else if (form) options.body = form;
  let reply;
  try {
    reply = await fetch(path, options);
  } catch (error) {
    if (error.name === "AbortError") throw error;
    throw new Failure(0, "unreachable", "The server does not answer.", "Is it still running?");
  }
  const document = await reply.json().catch(() => null);
  if (reply.ok) return document;
  const told = document?.error ?? { code: "unknown", message: `The server answered ${reply.status}.`, hint: "" };
  if (reply.status === 401 && askToken && path !== "/v1/session") {
    await askToken();
    return call(method, path, { json, form, signal });
  }
  throw new Failure(reply.status, told.code, told.message, told.hint);
}

const withPicture = (options, files) => {
  const form = new FormData();
  form.append("options", new Blob([JSON.stringify(options)], { type: "application/json" }));
  for (const [name, blob] of files) form.append(name, blob, "picture");
  return form;
};

export const info = () => call("GET", "/v1/info");
export const ready = () => fetch("/v1/ready").then((reply) => reply.ok, () => false);
export const session = (token) => call("POST", "/v1/session", { json: { token } });
export const list = (json, signal) => call("POST", "/v1/items/list", { json, signal });
export const get = (keys) => call("POST", "/v1/items/get", { json: { keys } });
export const facets = (where) => call("POST", "/v1/facets", { json: where ? { where } : {} });
export const recommend = (json, signal) => call("POST", "/v1/recommend", { json, signal });
export const duplicates = (json, signal) => call("POST", "/v1/duplicates", { json, signal });
export const label = (json) => call("POST", "/v1/label", { json });
export const map = (field) => call("GET", "/v1/map" + (field ? `?field=${encodeURIComponent(field)}` : ""));
export const react = (json) => call("POST", "/v1/feedback", { json });
export const forget = (person) => call("DELETE", `/v1/feedback?person=${encodeURIComponent(person)}`);

export const search = (options, blob, signal) =>
  blob
    ? call("POST", "/v1/search", { form: withPicture(options, [["picture", blob]]), signal })
    : call("POST", "/v1/search", { json: options, signal });

export const explain = (options, blob) =>
  blob
    ? call("POST", "/v1/explain", { form: withPicture(options, [["picture", blob]]) })
    : call("POST", "/v1/explain", { json: options });
