// One realtime session over a WebSocket: opens it, sends audio, hands on the server's events, ends it.
// Knows the wire protocol and nothing of microphones or of the page; app.js is its user.

const ROOT = new URL("..", import.meta.url);
const MODEL = "qwen3-asr-flash-realtime";
const OPEN_DEADLINE_MS = 15_000;
const FINISH_DEADLINE_MS = 60_000;
const UNSENT_LIMIT_BYTES = 2_000_000; // about 45 s of audio that the network has not taken

/** A problem whose message is written for the user. */
export class Problem extends Error {}

/** Fetch what the server says about itself. */
export async function fetchInfo() {
  const response = await fetch(ROOT, { headers: { Accept: "application/json" }, cache: "no-store" });
  if (!response.ok) throw new Problem(`The server answered with status ${response.status}.`);
  return response.json();
}

export class RealtimeSession {
  /**
   * Connect and configure; resolves when the server has taken the configuration.
   * @param {{key: string, language: string, silenceMs: number}} options an empty key needs no ticket
   * @param {{event: (message: object) => void, ended: (problem: string) => void}} on `ended` is called once, only
   *   for an end that `finish` did not ask for
   */
  static async open(options, on) {
    const url = new URL("api-ws/v1/realtime", ROOT);
    url.protocol = url.protocol === "https:" ? "wss:" : "ws:";
    url.searchParams.set("model", MODEL);
    if (options.key) url.searchParams.set("ticket", await fetchTicket(options.key));
    const session = new RealtimeSession(url, options, on);
    await session.#within(session.#configured, OPEN_DEADLINE_MS, "The server does not answer.");
    return session;
  }

  #socket;
  #on;
  #state = "opening";
  #configured;
  #over;
  #settle = {};

  constructor(url, options, on) {
    this.#on = on;
    this.#configured = this.#promise("configured");
    this.#over = this.#promise("over");
    // Whoever waits sees the rejection; nobody waits for both.
    this.#configured.catch(() => {});
    this.#over.catch(() => {});
    this.#socket = new WebSocket(url);
    this.#socket.onmessage = ({ data }) => this.#receive(JSON.parse(data), options);
    this.#socket.onclose = ({ code, reason }) => this.#end(closeProblem(code, reason));
  }

  /** Send one packet of signed 16-bit samples. */
  append(samples) {
    if (this.#state !== "open") return;
    if (this.#socket.bufferedAmount > UNSENT_LIMIT_BYTES) {
      this.#end("The network is too slow for the audio.");
      return;
    }
    const bytes = new Uint8Array(samples.buffer, samples.byteOffset, samples.byteLength);
    this.#send({ type: "input_audio_buffer.append", audio: btoa(String.fromCharCode(...bytes)) });
  }

  /** Change language or silence; holds from the next utterance on. */
  configure({ language, silenceMs }) {
    if (this.#state === "closed" || this.#state === "finishing") return;
    this.#send({
      type: "session.update",
      session: {
        modalities: ["text"],
        input_audio_format: "pcm",
        sample_rate: 16000,
        input_audio_transcription: language ? { language } : {},
        turn_detection: { type: "server_vad", silence_duration_ms: silenceMs },
      },
    });
  }

  /** Ask for the last results; resolves when they have all arrived. */
  async finish() {
    if (this.#state !== "open") return;
    this.#state = "finishing";
    this.#send({ type: "session.finish" });
    await this.#within(this.#over, FINISH_DEADLINE_MS, "The last results did not come in time.");
  }

  #receive(message, options) {
    this.#on.event(message);
    switch (message.type) {
      case "session.created":
        this.configure(options);
        break;
      case "session.updated":
        if (this.#state === "opening") {
          this.#state = "open";
          this.#settle.configured.resolve();
        }
        break;
      case "session.finished":
        if (this.#state === "finishing") {
          this.#state = "closed";
          this.#settle.over.resolve();
          this.#socket.close(1000);
        } else {
          this.#end("The server has ended the session, perhaps to shut down. Try again in a moment.");
        }
        break;
      case "error":
        if (this.#state === "opening") this.#end(message.error.message);
        break;
      default:
    }
  }

  #send(message) {
    if (this.#socket.readyState === WebSocket.OPEN) this.#socket.send(JSON.stringify(message));
  }

  #end(text) {
    if (this.#state === "closed") return;
    const before = this.#state;
    this.#state = "closed";
    this.#socket.close();
    this.#settle.configured.reject(new Problem(text));
    this.#settle.over.reject(new Problem(text));
    if (before === "open") this.#on.ended(text);
  }

  #promise(name) {
    return new Promise((resolve, reject) => { this.#settle[name] = { resolve, reject }; });
  }

  async #within(promise, deadlineMs, text) {
    const timer = setTimeout(() => this.#end(text), deadlineMs);
    try {
      await promise;
    } finally {
      clearTimeout(timer);
    }
  }
}

/** Exchange the key for a one-use ticket: a browser cannot put a key into a WebSocket's headers. */
async function fetchTicket(key) {
  const response = await fetch(new URL("api/tickets", ROOT), {
    method: "POST",
    headers: { Authorization: `Bearer ${key}` },
  });
  if (response.status === 401 || response.status === 403) throw new Problem("The server does not accept this API key.");
  if (!response.ok) throw new Problem(`The server gave no ticket (status ${response.status}).`);
  return (await response.json()).ticket;
}

function closeProblem(code, reason) {
  switch (code) {
    case 1001:
      return "The server is shutting down. Try again in a moment.";
    case 1006:
      return "The connection was refused or lost.";
    case 1008:
      return reason || "The server does not allow this session.";
    case 1013:
      return "The server is full. Try again later.";
    default:
      return reason || `The server closed the connection (code ${code}).`;
  }
}
