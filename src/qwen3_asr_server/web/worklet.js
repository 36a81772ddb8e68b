// Runs in the audio thread: takes what the microphone gives, makes 16 kHz signed 16-bit packets of 100 ms of it
// and posts them with their peak. Knows no socket and no page; microphone.js is its only user.

const TARGET_RATE = 16000;
const PACKET_SAMPLES = 1600;

/** Low-pass and resample to 16 kHz: a Hann-windowed sinc, evaluated where each output sample falls. */
class Resampler {
  constructor(inputRate) {
    this.step = inputRate / TARGET_RATE;
    // Below 16 kHz nothing can alias; above, cut a little under the new Nyquist frequency.
    this.cutoff = this.step > 1 ? 0.92 / this.step : 1;
    this.halfWidth = Math.ceil(16 / this.cutoff);
    this.history = new Float32Array(2 * this.halfWidth);
    this.position = this.halfWidth;
  }

  process(input) {
    const samples = new Float32Array(this.history.length + input.length);
    samples.set(this.history);
    samples.set(input, this.history.length);
    const output = [];
    for (; this.position < samples.length - this.halfWidth; this.position += this.step) {
      output.push(this.valueAt(samples, this.position));
    }
    this.history = samples.slice(samples.length - 2 * this.halfWidth);
    this.position -= input.length;
    return output;
  }

  valueAt(samples, position) {
    const first = Math.ceil(position - this.halfWidth);
    const last = Math.floor(position + this.halfWidth);
    let sum = 0;
    for (let index = Math.max(first, 0); index <= last && index < samples.length; index += 1) {
      const distance = index - position;
      const angle = Math.PI * this.cutoff * distance;
      const sinc = Math.abs(angle) < 1e-9 ? 1 : Math.sin(angle) / angle;
      sum += samples[index] * this.cutoff * sinc * (0.5 + 0.5 * Math.cos((Math.PI * distance) / this.halfWidth));
    }
    return sum;
  }
}

class Capture extends AudioWorkletProcessor {
  constructor() {
    super();
    this.resampler = sampleRate === TARGET_RATE ? null : new Resampler(sampleRate);
    this.packet = new Int16Array(PACKET_SAMPLES);
    this.filled = 0;
    this.peak = 0;
    this.running = true;
    this.port.onmessage = () => {
      this.post(true);
      this.running = false;
    };
  }

  process([channels]) {
    // A source that has nothing to say yet has no channels.
    if (this.running && channels.length > 0) {
      this.take(this.resampler ? this.resampler.process(channels[0]) : channels[0]);
    }
    return this.running;
  }

  take(samples) {
    for (const sample of samples) {
      this.peak = Math.max(this.peak, Math.abs(sample));
      this.packet[this.filled] = Math.max(-32768, Math.min(32767, Math.round(sample * 32768)));
      this.filled += 1;
      if (this.filled === PACKET_SAMPLES) this.post(false);
    }
  }

  post(last) {
    const samples = this.packet.slice(0, this.filled);
    this.port.postMessage({ samples, peak: this.peak, last }, [samples.buffer]);
    this.filled = 0;
    this.peak = 0;
  }
}

registerProcessor("capture", Capture);
