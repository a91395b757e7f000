// The camera: reads a new frame as soon as the previous one has been processed.

export class Camera {
  // look: an async function that receives the <video> element and may read its current frame.
  constructor(look) {
    this.look = look;
    this.stream = null;
    this.video = Object.assign(document.createElement('video'), { muted: true, playsInline: true });
    document.addEventListener('visibilitychange', () => document.hidden && this.stop());
  }

  get isOn() {
    return this.stream !== null;
  }

  // Runs until the camera is stopped. Throws an Error with a readable message if there is no camera or no permission.
  async run(started) {
    if (!navigator.mediaDevices?.getUserMedia) {
      throw new Error('The camera works only on localhost or over https.');
    }
    try {
      this.stream = await navigator.mediaDevices.getUserMedia(
        { audio: false, video: { facingMode: 'environment', width: { ideal: 1280 }, height: { ideal: 720 } } });
      this.video.srcObject = this.stream;
      await this.video.play();
      started();
      this.stream?.getTracks().forEach((track) => track.addEventListener('ended', () => this.stop()));
      while (this.isOn) {
        await this.look(this.video);
        await new Promise((resolve) => requestAnimationFrame(resolve)); // lets the page draw and handle clicks
      }
    } catch (error) {
      throw error instanceof DOMException ? new Error(inWords(error)) : error;
    } finally {
      this.stop();
    }
  }

  stop() {
    this.stream?.getTracks().forEach((track) => track.stop());
    this.stream = null;
    this.video.srcObject = null;
  }
}

function inWords(error) {
  return {
    NotAllowedError: 'The camera is blocked: allow it for this page in the browser’s settings.',
    NotFoundError: 'No camera was found.',
    NotReadableError: 'The camera is in use by another program.',
    AbortError: 'The camera stopped.',
  }[error.name] ?? `The camera cannot be used (${error.name}).`;
}
