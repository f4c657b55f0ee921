// The page of vmla-serve: streams are played with Media Source Extensions while they are made.
"use strict";

const BUFFER_SECONDS = 2;       // asked of the server: how much is made ahead of what is shown
const KEPT_SECONDS = 30;        // of what was shown, in the player's memory
const WAITS = [0.5, 1, 2, 4];   // seconds before each new attempt to reach the server; then the last, for ever
const DONE = { completed: "Complete", stopped: "Ended", paused: "At rest; load the page again to go on" };
const GONE = ["not_found", "gone", "generation_failed", "not_resumable", "model_not_found", "invalid_request"];

const find = (selector, within = document) => within.querySelector(selector);
const key = () => sessionStorage.getItem("key") || "";
const streams = [];

function say(text) { find("#said").textContent = text; }

// The server.

async function ask(path, method = "GET", body) {
  const headers = {};
  if (key()) headers.Authorization = `Bearer ${key()}`;
  if (body) headers["Content-Type"] = "application/json";
  const response = await fetch(path, { method, headers, body: body && JSON.stringify(body) });
  if (response.ok) return response;
  const told = await response.json().catch(() => null);
  const error = new Error(told?.error?.message || `the server answers ${response.status}`);
  error.status = response.status;
  throw error;
}

function connect() {
  const spoken = ["vmla.video"];
  if (key()) {
    const bytes = String.fromCharCode(...new TextEncoder().encode(key()));
    spoken.push("vmla.key." + btoa(bytes).replaceAll("+", "-").replaceAll("/", "_").replaceAll("=", ""));
  }
  const socket = new WebSocket(location.origin.replace(/^http/, "ws") + "/v1/realtime/video", spoken);
  socket.binaryType = "arraybuffer";
  return socket;
}

function bytes(count) {
  return count >= 1e9 ? `${(count / 1e9).toFixed(1)} GB` : count >= 1e6 ? `${(count / 1e6).toFixed(1)} MB` : `${Math.round(count / 1e3)} kB`;
}

// The codec, as the head of the file names it.
function codecOf(buffer) {
  const data = new Uint8Array(buffer);
  for (let i = 0; i < data.length - 8; i++) {
    if (data[i] === 0x61 && data[i + 1] === 0x76 && data[i + 2] === 0x63 && data[i + 3] === 0x43) {
      const hex = [...data.subarray(i + 5, i + 8)].map((b) => b.toString(16).padStart(2, "0")).join("");
      return `video/mp4; codecs="avc1.${hex}"`;
    }
  }
  return 'video/mp4; codecs="avc1.64000c"';
}

// A stream: its card, its player, its connection.

class Stream {
  constructor(start, { after = null, origin = "" } = {}) {
    this.start = start;
    this.id = start.session_id || null;
    this.next = null;              // number of the chunk that comes next
    this.attempts = 0;
    this.over = false;
    this.shown = [];               // what each chunk shows: [second at which it begins, number, prompt]
    this.waiting = [];             // pieces that the player has not taken yet
    this.card = find("#card").content.firstElementChild.cloneNode(true);
    this.video = find("video", this.card);
    this.prepare(origin);
    if (after) after.card.after(this.card); else find("#streams").prepend(this.card);
    streams.push(this);
    arrange();
    this.open();
    this.timer = setInterval(() => this.tick(), 250);
    this.slow = setInterval(() => this.look(), 1000);
  }

  prepare(origin) {
    const form = find(".change", this.card);
    const field = find(".prompt", this.card);
    const name = `p${streams.length}-${Date.now()}`;
    field.id = name;
    find(".prompt-label", this.card).htmlFor = name;
    form.querySelectorAll("[type=radio]").forEach((radio) => { radio.name = `policy-${name}`; });
    find(".origin", this.card).textContent = origin;
    this.card.classList.toggle("fork-of", Boolean(origin));
    if (this.start.prompt) this.showPrompt(this.start.prompt);
    form.addEventListener("submit", (event) => { event.preventDefault(); this.change(field.value.trim()); });
    find(".fork", this.card).addEventListener("click", () => this.fork(field.value.trim()));
    find(".pause", this.card).addEventListener("click", () => this.pause());
    find(".save", this.card).addEventListener("click", () => this.save());
    find(".end", this.card).addEventListener("click", () => this.end());
  }

  get policy() { return find("[type=radio]:checked", this.card).value; }

  // The connection.

  open() {
    this.state(this.attempts ? "The server is away; trying again" : "");
    const socket = this.socket = connect();
    socket.onopen = () => socket.send(JSON.stringify({ type: "session.start", streaming_buffer_seconds: BUFFER_SECONDS, ...this.wish() }));
    socket.onmessage = (event) => this.hear(event.data);
    socket.onclose = () => { if (!this.over && this.socket === socket) this.again(); };
  }

  wish() {
    if (!this.id) return this.start;
    return this.next === null ? { session_id: this.id, ...this.from() } : { session_id: this.id, sequence_number: this.next };
  }

  from() { return this.start.sequence_number === undefined ? {} : { sequence_number: this.start.sequence_number }; }

  again() {
    const wait = WAITS[Math.min(this.attempts++, WAITS.length - 1)];
    this.state("The server is away; trying again", true);
    setTimeout(() => this.over || this.open(), 1000 * wait);
  }

  send(message) { if (this.socket?.readyState === WebSocket.OPEN) this.socket.send(JSON.stringify(message)); }

  hear(data) {
    if (typeof data !== "string") { this.take(data); return; }
    const message = JSON.parse(data);
    if (message.type === "video.start") this.begun(message);
    if (message.type === "video.chunk_metadata") this.about = message;
    if (message.type === "session.interaction.queued") this.note("Takes effect with the next chunk", message.warnings);
    if (message.type === "session.done") this.finish(DONE[message.status] || "Ended");
    if (message.type === "error") this.failed(message);
  }

  begun(message) {
    this.id = message.session_id;
    this.attempts = 0;
    this.state("");
    this.report();
    remember();
    find(".seed", this.card).textContent = message.config.seed;
    this.card.style.setProperty("--ratio", message.config.width / message.config.height);
    if (!this.shown.length) {
      this.showPrompt(message.config.prompt);
      this.note("", message.warnings);
    }
  }

  failed(message) {
    if (message.event_id) { this.note(message.message); return; }
    if (GONE.includes(message.code)) this.finish(message.message, true);
    else this.state(message.message, true);
  }

  finish(text, bad = false) {
    this.over = true;
    this.socket?.close();
    this.state(text, bad);
    say(text);
    this.card.querySelectorAll(".change button, .pause").forEach((button) => { button.disabled = true; });
    if (this.source?.readyState === "open") this.feed();
  }

  // The player.

  take(data) {
    const about = this.about;
    this.next = about.sequence_number + 1;
    if (!this.source) this.openSource(codecOf(data));
    this.waiting.push({ data, about });
    this.feed();
  }

  openSource(codec) {
    this.source = new MediaSource();
    this.video.src = URL.createObjectURL(this.source);
    this.source.addEventListener("sourceopen", () => {
      URL.revokeObjectURL(this.video.src);
      this.buffer = this.source.addSourceBuffer(codec);
      this.buffer.addEventListener("updateend", () => this.feed());
      this.feed();
    });
  }

  feed() {
    const buffer = this.buffer;
    if (!buffer || buffer.updating || this.source.readyState !== "open") return;
    const range = buffer.buffered;
    if (range.length && this.video.currentTime < range.start(0)) this.video.currentTime = range.start(0);
    if (this.given) {
      this.shown.push([range.end(range.length - 1) - this.given.num_frames / this.given.fps, this.given.sequence_number, this.given.prompt]);
      this.given = null;
    }
    if (range.length && this.video.currentTime - range.start(0) > 2 * KEPT_SECONDS) {
      buffer.remove(range.start(0), this.video.currentTime - KEPT_SECONDS);
      return;
    }
    const piece = this.waiting.shift();
    if (piece) { this.given = piece.about; buffer.appendBuffer(piece.data); return; }
    if (this.over) { this.source.endOfStream(); return; }
    if (this.video.paused && !this.held) this.video.play().catch(() => {});
  }

  get ahead() {
    const range = this.video.buffered;
    return range.length ? Math.max(0, range.end(range.length - 1) - this.video.currentTime) : 0;
  }

  tick() {
    this.report();
    find(".buffer", this.card).textContent = this.next === null ? "–" : `${this.ahead.toFixed(1)} s`;
    while (this.shown.length > 1 && this.shown[1][0] <= this.video.currentTime + 0.01) this.shown.shift();
    if (!this.shown.length || this.shown[0][0] > this.video.currentTime + 0.05) return;
    const [, number, prompt] = this.shown[0];
    find(".chunk", this.card).textContent = number;
    if (prompt !== this.prompt) {
      this.showPrompt(prompt);
      this.note(`In effect since chunk ${number}`);
      say(`Now showing: ${prompt}`);
    }
  }

  report() { if (this.next !== null && !this.over) this.send({ type: "session.playback", position_seconds: this.video.currentTime }); }

  async look() {
    if (!this.id || this.over) return;
    try {
      const now = await (await ask(`/v1/sessions/${this.id}`)).json();
      find(".speed", this.card).textContent = now.making_fps ? `${Math.round(now.making_fps)} fps` : "–";
      find(".memory", this.card).textContent = now.memory_bytes ? bytes(now.memory_bytes) : "on disk";
    } catch { /* the connection says so */ }
  }

  // What a person does with it.

  change(prompt) {
    if (!prompt) return;
    this.send({ type: "session.interaction", interaction: { event: { prompt }, policy: this.policy } });
    find(".prompt", this.card).value = "";
  }

  async fork(prompt) {
    const body = { policy: this.policy };
    if (prompt) body.prompt = prompt; else body.seed = Math.floor(Math.random() * 2 ** 31);
    try {
      const other = await (await ask(`/v1/sessions/${this.id}/fork`, "POST", body)).json();
      const number = Math.max(other.first_sequence_number, this.shown[0]?.[1] ?? other.sequence_number - 1);
      const named = prompt ? "another prompt" : `seed ${body.seed}`;
      new Stream({ session_id: other.id, sequence_number: Math.min(number, other.sequence_number) },
        { after: this, origin: `The same past, ${named} from chunk ${other.sequence_number} on` });
      find(".prompt", this.card).value = "";
      say("Forked");
    } catch (error) { this.note(error.message); }
  }

  pause() {
    this.held = !this.held;
    if (this.held) this.video.pause(); else this.video.play().catch(() => {});
    const button = find(".pause", this.card);
    button.setAttribute("aria-pressed", this.held);
    button.textContent = this.held ? "Go on" : "Pause";
    this.state(this.held ? "Paused; nothing is made meanwhile" : "");
  }

  async save() {
    try {
      const blob = await (await ask(`/v1/sessions/${this.id}/content`)).blob();
      const link = document.createElement("a");
      link.href = URL.createObjectURL(blob);
      link.download = `${this.id}.mp4`;
      link.click();
      setTimeout(() => URL.revokeObjectURL(link.href), 60000);
      this.note(`${bytes(blob.size)} so far`);
    } catch (error) { this.note(error.message); }
  }

  async end() {
    this.over = true;
    clearInterval(this.timer);
    clearInterval(this.slow);
    this.send({ type: "session.stop" });
    this.socket?.close();
    this.card.remove();
    streams.splice(streams.indexOf(this), 1);
    arrange();
    remember();
    find("#prompt").focus();
    say("Ended");
    if (this.id) await ask(`/v1/sessions/${this.id}`, "DELETE").catch(() => {});
  }

  // What a person sees.

  showPrompt(prompt) {
    this.prompt = prompt;
    find(".shows", this.card).textContent = prompt;
    this.video.setAttribute("aria-label", `Video: ${prompt}`);
    this.card.setAttribute("aria-label", prompt);
  }

  state(text, bad = false) {
    const line = find(".state", this.card);
    line.textContent = text;
    line.classList.toggle("bad", bad);
  }

  note(text, warnings = []) {
    const line = find(".note", this.card);
    line.textContent = [text, ...(warnings || [])].filter(Boolean).join(". ");
    line.classList.toggle("soon", text.startsWith("Takes effect"));
  }
}

// The page.

function arrange() {
  document.body.classList.toggle("playing", streams.length > 0);
  find("#streams").dataset.count = Math.min(streams.length, 3);
}

// The address names the streams, so that it can be sent to somebody, or loaded again.
function remember() {
  const names = streams.map((stream) => stream.id).filter(Boolean);
  history.replaceState(null, "", names.length ? `#${names.join(",")}` : location.pathname);
}

function add(word) {
  const field = find("#prompt");
  field.value = field.value ? `${field.value.trimEnd()} ${word}` : word;
  field.focus();
}

function chip(text, act) {
  const button = document.createElement("button");
  button.type = "button";
  button.className = "word";
  button.textContent = text;
  button.addEventListener("click", act);
  return button;
}

function showModel(model) {
  find("#model").textContent = `${model.id}, ${model.width} × ${model.height}, ${model.fps} frames a second`;
  if (!model.knows) return;
  const list = find("#knows dl");
  const { examples, ...words } = model.knows;
  for (const [kind, known] of Object.entries({ ...words, examples })) {
    const name = document.createElement("dt"), value = document.createElement("dd");
    name.textContent = kind[0].toUpperCase() + kind.slice(1);
    value.append(...known.map((word) => chip(word, () => { if (kind === "examples") find("#prompt").value = ""; add(word); })));
    list.append(name, value);
  }
  find("#knows").hidden = false;
  find("#prompt").placeholder = examples[0];
}

async function enter() {
  try {
    const { data: [model] } = await (await ask("/v1/models")).json();
    showModel(model);
    for (const id of location.hash.slice(1).split(",").filter(Boolean).reverse()) new Stream({ session_id: id });
    if (!streams.length) find("#prompt").focus();
  } catch (error) {
    if (error.status !== 401) { find("#server").textContent = error.message; return; }
    find("#wrong").textContent = key() ? "That key does not open it" : "";
    find("#door").showModal();
  }
}

find("#compose").addEventListener("submit", (event) => {
  event.preventDefault();
  const field = find("#prompt");
  const prompt = field.value.trim() || field.placeholder;
  if (!prompt) return;
  new Stream({ prompt, seed: Number(find("#seed").value) || 0 });
  say(`Playing: ${prompt}`);
  field.value = "";
});
find("#prompt").addEventListener("invalid", (event) => {
  // An empty field means the example that it shows.
  if (event.target.placeholder) { event.preventDefault(); event.target.value = event.target.placeholder; find("#compose").requestSubmit(); }
});
find("#door").addEventListener("close", () => { sessionStorage.setItem("key", find("#key").value); enter(); });
enter();
