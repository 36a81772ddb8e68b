// The microphone as a source of 100 ms packets: 16 kHz, mono, signed 16-bit little-endian.
// Knows the browser's audio API and nothing of the server; app.js is its user.

const RATE = 16000;
const CLOSE_DEADLINE_MS = 1000;

export class Microphone {
  /**
   * Ask for the microphone and begin to deliver packets.
   * @param {{packet: (samples: Int16Array, peak: number) => void, ended: () => void, paused: (yes: boolean) => void}} on
   * @throws {DOMException|TypeError} see `microphoneProblem`
   */
  static async open(on) {
    if (!navigator.mediaDevices) throw new TypeError("no media devices");
    // The recogniser wants the sound as it is; the browser's filters are made for telephony.
    const stream = await navigator.mediaDevices.getUserMedia({
      audio: { channelCount: 1, echoCancellation: false, noiseSuppression: false, autoGainControl: false },
    });
    const microphone = new Microphone(stream, on);
    try {
      await microphone.#start();
    } catch (error) {
      await microphone.close();
      throw error;
    }
    return microphone;
  }

  #stream;
  #on;
  #context = null;
  #node = null;
  #lastPacket;
  #sawLastPacket;
  #closing = null;

  constructor(stream, on) {
    this.#stream = stream;
    this.#on = on;
    this.#lastPacket = new Promise((resolve) => { this.#sawLastPacket = resolve; });
  }

  async #start() {
    const { context, source } = attach(this.#stream);
    this.#context = context;
    await context.audioWorklet.addModule(new URL("worklet.js", import.meta.url));
    this.#node = new AudioWorkletNode(context, "capture", { channelCount: 1, channelCountMode: "explicit" });
    this.#node.port.onmessage = ({ data }) => {
      if (data.samples.length > 0) this.#on.packet(data.samples, data.peak);
      if (data.last) this.#sawLastPacket();
    };
    this.#stream.getAudioTracks()[0].addEventListener("ended", () => this.#on.ended());
    context.addEventListener("statechange", () => {
      if (context.state !== "closed") this.#on.paused(context.state !== "running");
    });
    // Some browsers only run nodes that lead to the speakers. This one's output is silence.
    source.connect(this.#node).connect(context.destination);
    await context.resume();
  }

  /** Wake the audio clock after the browser has put it to sleep (a phone call, a hidden tab). */
  async resume() {
    if (this.#context && this.#context.state !== "running" && this.#context.state !== "closed") {
      await this.#context.resume();
    }
  }

  /** Let go of the microphone. Every packet has been delivered when this returns. */
  close() {
    this.#closing ??= this.#release();
    return this.#closing;
  }

  async #release() {
    if (this.#node) {
      this.#node.port.postMessage("flush");
      // The audio thread may be gone already: its rest is under 100 ms and not worth waiting for.
      await Promise.race([this.#lastPacket, new Promise((resolve) => setTimeout(resolve, CLOSE_DEADLINE_MS))]);
      this.#node.port.onmessage = null;
    }
    for (const track of this.#stream.getTracks()) track.stop();
    if (this.#context) await this.#context.close();
  }
}

/** Say in plain words why `Microphone.open` failed. */
export function microphoneProblem(error) {
  switch (error.name) {
    case "NotAllowedError":
      return "The browser does not let this page use the microphone. Allow it in the address bar, then press Start.";
    case "NotFoundError":
      return "No microphone was found.";
    case "NotReadableError":
      return "The microphone is in use by another program, or the system refuses it.";
    case "TypeError":
      if (!window.isSecureContext) {
        return "Browsers give the microphone only to pages from https:// or from this computer (http://localhost).";
      }
      return "This browser cannot record sound.";
    default:
      return "The microphone could not be started.";
  }
}

/** Let the browser resample where it can; elsewhere the worklet does. */
function attach(stream) {
  const context = new AudioContext({ sampleRate: RATE, latencyHint: "interactive" });
  try {
    return { context, source: context.createMediaStreamSource(stream) };
  } catch {
    // Firefox refuses a context whose rate is not the microphone's.
    context.close();
    const own = new AudioContext({ latencyHint: "interactive" });
    return { context: own, source: own.createMediaStreamSource(stream) };
  }
}
