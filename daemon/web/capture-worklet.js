/**
 * Runs on the audio thread: collects what the graph plays or records into frames of interleaved linear16, 40 ms each,
 * and posts them with their level. Microphone and file take the same way: so the audio clock itself paces a file.
 */

const FRAME_S = 0.04;
const FULL_SCALE = 32768;

class Capture extends AudioWorkletProcessor {
  /** @param {{processorOptions: {channels: number}}} options */
  constructor(options) {
    super();
    this.channels = options.processorOptions.channels;
    this.length = Math.round(sampleRate * FRAME_S);
    this.done = false;
    this.renew();
    this.port.onmessage = () => this.flush();
  }

  /** Starts the next frame. The last one's buffer was given away, so there is no pool to keep. */
  renew() {
    this.frame = new Int16Array(this.length * this.channels);
    this.filled = 0;
    this.squares = new Float64Array(this.channels);
    this.peaks = new Float32Array(this.channels);
  }

  /** Posts what is filled. */
  post() {
    const pcm = this.frame.slice(0, this.filled * this.channels).buffer;
    const rms = Array.from(this.squares, (sum) => Math.sqrt(sum / this.filled));
    this.port.postMessage({ pcm, rms, peak: Array.from(this.peaks) }, [pcm]);
    this.renew();
  }

  /** Ends the capture: the last, partly filled frame goes out, then the word that nothing follows. */
  flush() {
    if (this.done) return;
    this.done = true;
    if (this.filled > 0) this.post();
    this.port.postMessage({ done: true });
  }

  /** @param {Float32Array[][]} inputs one input of `channels` blocks; none while nothing is connected that sounds */
  process([input]) {
    if (this.done) return false;
    if (input.length < this.channels) return true;
    for (let index = 0; index < input[0].length; index += 1) {
      for (let channel = 0; channel < this.channels; channel += 1) {
        const sample = Math.max(-1, Math.min(1, input[channel][index]));
        // 32767, not 32768: +1.0 has no linear16 value, and a wrapped one is the loudest click there is.
        this.frame[this.filled * this.channels + channel] = Math.min(FULL_SCALE - 1, Math.round(sample * FULL_SCALE));
        this.squares[channel] += sample * sample;
        this.peaks[channel] = Math.max(this.peaks[channel], Math.abs(sample));
      }
      this.filled += 1;
      if (this.filled === this.length) this.post();
    }
    return true;
  }
}

registerProcessor("capture", Capture);
