// How the page asks the server: the key that goes with it, and the one shape of its failures. No DOM here.

export class ApiError extends Error {
  constructor(message, { status = 0, code = null, retryAfterSeconds = 0 } = {}) {
    super(message);
    this.status = status; // 0: the server was not reached, or the stream broke
    this.code = code;
    this.retryAfterSeconds = retryAfterSeconds;
  }
}

async function failure(response) {
  let error = null;
  try {
    error = (await response.json()).error;
  } catch {
    // A proxy's page, or nothing: the status has to do.
  }
  return new ApiError(error?.message || `${response.status} ${response.statusText}`.trim(), {
    status: response.status,
    code: error?.code ?? null,
    retryAfterSeconds: Math.ceil(Number(response.headers.get("retry-after"))) || 0,
  });
}

/**
 * Calls with one kind of key, which is kept until the tab is closed and goes into a header, never into a cookie: no
 * other page can make a browser send it. `asksAt` are the statuses at which a key, or another one, is asked for; with
 * `always`, nothing is sent without one.
 */
export class Client {
  #key = null;
  #asksFor = async () => false;

  constructor(storedAs, { asksAt = [401], always = false } = {}) {
    Object.assign(this, { storedAs, asksAt, always });
    try {
      this.#key = sessionStorage.getItem(storedAs);
    } catch {
      // Storage may be forbidden; the key then lives as long as the page.
    }
  }

  get hasKey() {
    return this.#key !== null;
  }

  /** `handler(refused)` is asked when the server wants a key; it resolves to true after `useKey`. */
  onKeyNeeded(handler) {
    this.#asksFor = handler;
  }

  useKey(value) {
    this.#key = value;
    try {
      sessionStorage.setItem(this.storedAs, value);
    } catch {
      // As above.
    }
  }

  forgetKey() {
    this.#key = null;
    try {
      sessionStorage.removeItem(this.storedAs);
    } catch {
      // As above.
    }
  }

  async call(method, path, { body, headers = {}, signal } = {}) {
    for (;;) {
      if (this.always && !this.hasKey && !(await this.#asksFor(false))) throw new ApiError("no key", { status: 401 });
      const sent = { ...headers };
      if (body !== undefined) sent["content-type"] = "application/json";
      const used = this.#key;
      if (used) sent.authorization = `Bearer ${used}`;
      let response;
      try {
        response = await fetch(path, {
          method,
          headers: sent,
          body: body === undefined ? undefined : JSON.stringify(body),
          signal,
          credentials: "same-origin",
        });
      } catch (error) {
        if (signal?.aborted) throw error;
        throw new ApiError("unreachable", { code: "unreachable" });
      }
      if (response.ok) return response;
      // Another call may have been given a better key meanwhile.
      if (this.asksAt.includes(response.status) && (used !== this.#key || (await this.#asksFor(this.hasKey)))) continue;
      throw await failure(response);
    }
  }

  async json(method, path, options) {
    const response = await this.call(method, path, options);
    return response.status === 204 ? null : response.json();
  }
}
