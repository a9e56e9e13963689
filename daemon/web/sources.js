/**
 * Where audio comes from: a microphone or a file. Both end in the capture worklet and give the same frames.
 *
 * @typedef {{pcm: ArrayBuffer, rms: number[], peak: number[]}} Frame
 *     40 ms of interleaved linear16, and its level per channel, 0..1
 */

/** A source that cannot be had, in words for the person at the page. */
export class SourceError extends Error {}

/** The server did not give what the page still needed from it. */
export class ServerAway extends Error {}

/** Below this share of the energy, the difference of two channels is only what a codec left. */
const SAME_CHANNELS = 0.01;

const MICROPHONE_WORDS = {
  NotAllowedError:
    "The browser did not give access to the microphone. Allow it in the address bar (the icon beside the address), " +
    "then press Start again, or play a file instead.",
  NotFoundError: "No microphone was found. Connect one and press Start again, or play a file instead.",
  NotReadableError:
    "The microphone is there but could not be opened. Close other programs that use it and press Start again.",
};

/** Audio that can be started once and stopped once. */
export class Source {
  /**
   * @param {AudioContext} context
   * @param {AudioNode} node what sounds
   * @param {{
   *     name: string, roles: string[], note?: string, media?: MediaStream, start?: () => void, release?: () => void
   * }} about `media`: what a microphone gives, to be published as it is
   */
  constructor(context, node, about) {
    this.context = context;
    this.node = node;
    this.name = about.name;
    this.roles = about.roles;
    this.note = about.note ?? "";
    this.media = about.media;
    this.startNode = about.start ?? (() => {});
    this.release = about.release ?? (() => {});
    /** Called when the source ends by itself: the file is over, the microphone was unplugged. */
    this.onended = () => {};
  }

  /** @returns {number} Hz */
  get sampleRate() {
    return this.context.sampleRate;
  }

  /**
   * Sends frames from now on.
   * @param {(frame: Frame) => void} onFrame
   */
  start(onFrame) {
    const channels = this.roles.length;
    this.capture = new AudioWorkletNode(this.context, "capture", {
      numberOfInputs: 1,
      numberOfOutputs: 1,
      channelCount: channels,
      channelCountMode: "explicit",
      channelInterpretation: "speakers",
      processorOptions: { channels },
    });
    this.flushed = new Promise((resolve) => {
      this.capture.port.onmessage = ({ data }) => (data.done ? resolve() : onFrame(data));
    });
    this.node.connect(this.capture);
    // Its output is silence. It is connected because a graph that leads nowhere need not be run.
    this.capture.connect(this.context.destination);
    this.startNode();
  }

  /** Stops, with the last part of a frame sent, and gives the device back. */
  async stop() {
    if (this.stopped) return;
    this.stopped = true;
    if (this.capture && this.context.state === "running") {
      this.capture.port.postMessage("flush");
      await Promise.race([this.flushed, new Promise((resolve) => setTimeout(resolve, 300))]);
    }
    this.release();
    await this.context.close();
  }
}

/**
 * Asks for the microphone.
 * @returns {Promise<Source>}
 * @throws {SourceError | ServerAway}
 */
export async function openMicrophone() {
  const context = await openContext();
  let stream;
  try {
    stream = await navigator.mediaDevices.getUserMedia({
      // Gain control keeps a quiet laptop microphone above the speech detector's floor. The other two gate and smear
      // the voice, and nothing here plays while it records.
      audio: { channelCount: 1, autoGainControl: true, echoCancellation: false, noiseSuppression: false },
    });
  } catch (error) {
    await context.close();
    throw new SourceError(MICROPHONE_WORDS[error.name] ?? `The microphone could not be opened: ${error.message}`);
  }
  const [track] = stream.getAudioTracks();
  const source = new Source(context, context.createMediaStreamSource(stream), {
    name: "Microphone",
    media: stream,
    roles: ["customer"],
    release: () => track.stop(),
  });
  track.addEventListener("ended", () => source.onended());
  return source;
}

/** The two-party call that ships with the daemon. */
export async function openDemo() {
  const answer = await fetch("demo/call.flac").catch(() => undefined);
  if (!answer?.ok) throw new SourceError("The demo call could not be loaded from the server.");
  return openFile(new File([await answer.blob()], "call.flac"));
}

/**
 * Decodes a file, to be heard and streamed as fast as it was spoken.
 * @param {File} file
 * @returns {Promise<Source>}
 * @throws {SourceError | ServerAway}
 */
export async function openFile(file) {
  const context = await openContext();
  let buffer;
  try {
    buffer = await context.decodeAudioData(await file.arrayBuffer());
  } catch {
    await context.close();
    throw new SourceError(`“${file.name}” could not be decoded. Browsers play WAV, FLAC, MP3, M4A and Ogg.`);
  }
  const node = new AudioBufferSourceNode(context, { buffer });
  const parties = buffer.numberOfChannels > 1 && !sameChannels(buffer);
  const source = new Source(context, node, {
    name: file.name,
    roles: parties ? ["customer", "agent"] : ["customer"],
    note: buffer.numberOfChannels > 1 && !parties ? "Both channels of this file are the same: one lane is enough." : "",
    start: () => {
      node.connect(context.destination);
      node.start();
    },
    release: () => node.stop(),
  });
  node.addEventListener("ended", () => source.onended());
  return source;
}

/** @returns {Promise<AudioContext>} running, with the worklet loaded */
async function openContext() {
  if (!window.isSecureContext || !navigator.mediaDevices) {
    throw new SourceError(
      "Browsers give audio to secure pages only. " +
        "Open this page as http://localhost, or put HTTPS in front of the daemon.",
    );
  }
  const context = new AudioContext({ latencyHint: "interactive" });
  try {
    await context.audioWorklet.addModule(new URL("capture-worklet.js", import.meta.url));
  } catch (error) {
    await context.close();
    throw new ServerAway(error.message);
  }
  await context.resume();
  return context;
}

/**
 * Whether a stereo file holds one voice twice.
 * @param {AudioBuffer} buffer
 */
function sameChannels(buffer) {
  const [left, right] = [buffer.getChannelData(0), buffer.getChannelData(1)];
  let [difference, energy] = [0, 0];
  for (let index = 0; index < left.length; index += 7) {
    difference += (left[index] - right[index]) ** 2;
    energy += left[index] ** 2 + right[index] ** 2;
  }
  return difference <= SAME_CHANNELS * energy;
}
