// The camera: frames one after the other, each as soon as the one before has been looked at.

export class Camera {
  // look: an async function that is given the <video>, whose current frame it may read.
  constructor(look) {
    this.look = look;
    this.stream = null;
    this.video = Object.assign(document.createElement('video'), { muted: true, playsInline: true });
    document.addEventListener('visibilitychange', () => document.hidden && this.stop());
  }

  get isOn() {
    return this.stream !== null;
  }

  // Runs until the camera is stopped. Throws an Error in plain words if there is none, or it may not be used.
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
        await new Promise((resolve) => requestAnimationFrame(resolve)); // lets the page be drawn and clicked
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
    NotAllowedError: 'The camera may not be used: allow it for this page in the browser’s settings.',
    NotFoundError: 'No camera was found.',
    NotReadableError: 'The camera is in use by another program.',
    AbortError: 'The camera stopped.',
  }[error.name] ?? `The camera cannot be used (${error.name}).`;
}
