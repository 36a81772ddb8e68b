// The page: joins the microphone with a realtime session and shows what comes back.
// Knows neither the audio API (microphone.js) nor the wire's requests (realtime.js), only the events it shows.

import { Microphone, microphoneProblem } from "./microphone.js";
import { Problem, RealtimeSession, fetchInfo } from "./realtime.js";

const STATES = {
  loading: "Loading",
  unreachable: "Server not reached",
  unready: "Server not ready",
  idle: "Ready",
  starting: "Connecting",
  listening: "Listening",
  paused: "Paused by the browser",
  finishing: "Waiting for the last results",
};
const UNREADY = {
  loading: "The recogniser is loading. This page goes on by itself.",
  restarting: "The recogniser has died and is started again. This page goes on by itself.",
  full: "The server has no room for another session now. This page goes on by itself.",
  draining: "The server is shutting down.",
  failed: "The server could not start its recogniser. Its log says why.",
};
const RETRY_MS = 2000;
const WAITING_PACKETS = 200; // 20 s of audio taken while the session opens

const $ = (id) => document.getElementById(id);
const items = new Map(); // item id → its row
let microphone = null;
let session = null;
let waiting = [];
let sentSamples = 0;
let finalCount = 0;
let serverError = "";
let needsKey = false;

setState("loading");
$("controls").addEventListener("submit", (event) => {
  event.preventDefault();
  if (document.body.dataset.state === "idle") start();
  else if (session) stop("");
});
$("silence").addEventListener("input", showSilence);
$("silence").addEventListener("change", () => session?.configure(options()));
$("language").addEventListener("change", () => session?.configure(options()));
document.addEventListener("visibilitychange", () => {
  if (!document.hidden) microphone?.resume();
});
load();

async function load() {
  try {
    const info = await fetchInfo();
    showInfo(info);
    showProblem(UNREADY[info.status] ?? "");
    setState(info.status in UNREADY ? "unready" : "idle");
    if (info.status in UNREADY) setTimeout(load, RETRY_MS);
  } catch (error) {
    setState("unreachable");
    showProblem(error instanceof Problem ? error.message : "The server cannot be reached. Is it running? Then reload.");
  }
}

async function start() {
  reset();
  setState("starting");
  try {
    microphone = await Microphone.open({
      packet: hearPacket,
      ended: () => stop("The microphone is gone."),
      paused: (yes) => { if (session) setState(yes ? "paused" : "listening"); },
    });
  } catch (error) {
    setState("idle");
    showProblem(microphoneProblem(error));
    return;
  }
  try {
    session = await RealtimeSession.open(options(), { event: showEvent, ended: lose });
    for (const samples of waiting.splice(0)) send(samples);
    setState("listening");
  } catch (error) {
    await microphone.close();
    microphone = null;
    setState("idle");
    showProblem(error instanceof Problem ? error.message : "The server cannot be reached.");
  }
}

/** End the session in order: last packet, finish, last results. */
async function stop(why) {
  const ending = session;
  if (!ending || document.body.dataset.state === "finishing") return;
  setState("finishing");
  showProblem(why);
  await microphone.close();
  session = null;
  microphone = null;
  try {
    await ending.finish();
  } catch (error) {
    abandonOpenItems();
    showProblem(error.message);
  }
  rest();
}

/** The session ended although nobody asked for it. */
async function lose(why) {
  const lost = microphone;
  session = null;
  microphone = null;
  abandonOpenItems();
  showProblem(serverError ? `${serverError} ${why}` : why);
  await lost?.close();
  rest();
}

function hearPacket(samples, peak) {
  showLevel(peak);
  if (session) send(samples);
  else if (waiting.length < WAITING_PACKETS) waiting.push(samples);
}

function send(samples) {
  session?.append(samples);
  sentSamples += samples.length;
  $("sent").textContent = clock(sentSamples / 16).slice(0, -2);
}

function options() {
  return {
    key: needsKey ? $("key").value.trim() : "",
    language: $("language").value,
    silenceMs: Number($("silence").value),
  };
}

// ── What the server says ──

function showEvent(event) {
  switch (event.type) {
    case "input_audio_buffer.speech_started":
      row(event.item_id).times.from = event.audio_start_ms;
      showTimes(event.item_id);
      break;
    case "input_audio_buffer.speech_stopped":
      row(event.item_id).times.to = event.audio_end_ms;
      showTimes(event.item_id);
      break;
    case "conversation.item.input_audio_transcription.text":
      showPartial(event);
      break;
    case "conversation.item.input_audio_transcription.completed":
      showFinal(event.item_id, event.transcript);
      break;
    case "conversation.item.input_audio_transcription.failed":
      row(event.item_id).element.classList.add("failed");
      showFinal(event.item_id, `Not recognised: ${event.error.message}`);
      break;
    case "error":
      serverError = event.error.message;
      showProblem(serverError);
      break;
    default:
  }
}

function showPartial({ item_id, text, stash }) {
  const { element, stable, tail } = row(item_id);
  element.hidden = text + stash === "";
  stable.textContent = text;
  tail.textContent = stash;
  keepInView(element);
}

function showFinal(itemId, text) {
  const { element, stable, tail } = row(itemId);
  items.delete(itemId);
  element.classList.remove("open");
  stable.textContent = text;
  tail.remove();
  // A cough opens an utterance that turns out to hold no words.
  if (text === "") {
    element.remove();
    return;
  }
  element.hidden = false;
  finalCount += 1;
  $("count").textContent = finalCount;
  $("announcer").textContent = text;
  keepInView(element);
}

/** Return the row of an item, made at its first event. */
function row(itemId) {
  const known = items.get(itemId);
  if (known) return known;
  const [time, stable, tail] = [make("time"), make("span", "stable"), make("span", "tail")];
  const text = make("p");
  text.append(stable, tail);
  const element = make("li", "open");
  element.append(time, text);
  element.hidden = true;
  $("items").append(element);
  $("empty").hidden = true;
  const made = { element, time, stable, tail, times: {} };
  items.set(itemId, made);
  return made;
}

function showTimes(itemId) {
  const { time, times } = row(itemId);
  time.textContent = times.to === undefined ? `${clock(times.from)} –` : `${clock(times.from)} – ${clock(times.to)}`;
}

function abandonOpenItems() {
  for (const { element } of items.values()) element.classList.add("failed");
  items.clear();
}

function keepInView(element) {
  const list = $("items");
  const distance = list.scrollHeight - list.scrollTop - list.clientHeight;
  // Who has scrolled back to read is left alone.
  if (distance < element.offsetHeight + 60) list.scrollTop = list.scrollHeight;
}

// ── What the server is ──

function showInfo(info) {
  const engine = info.engine;
  $("engine").hidden = false;
  $("engine-name").textContent = engine.name === engine.model ? engine.name : `${engine.name} · ${engine.model}`;
  $("engine-description").textContent = engine.description;
  $("engine").classList.toggle("warning", !engine.production);
  $("engine-note").textContent = engine.production ? "" : "Not for production";
  const names = new Intl.DisplayNames(["en"], { type: "language" });
  const languages = engine.languages.map((code) => [names.of(code), code]).sort();
  $("language").replaceChildren($("language").firstElementChild, ...languages.map((entry) => new Option(...entry)));
  if (info.demo?.silence_duration_ms) $("silence").value = info.demo.silence_duration_ms;
  showSilence();
  needsKey = Boolean(info.auth_required);
  $("key-field").hidden = !needsKey;
  $("key").required = needsKey;
}

// ── Small things ──

function reset() {
  items.clear();
  $("items").replaceChildren();
  $("empty").hidden = false;
  waiting = [];
  sentSamples = 0;
  finalCount = 0;
  serverError = "";
  $("sent").textContent = "0:00";
  $("count").textContent = "0";
  $("announcer").textContent = "";
  showProblem("");
}

function rest() {
  showLevel(0);
  setState("idle");
}

function setState(state) {
  document.body.dataset.state = state;
  $("state").textContent = STATES[state];
  $("toggle").textContent = ["listening", "paused", "finishing"].includes(state) ? "Stop" : "Start";
  $("toggle").disabled = !["idle", "listening", "paused"].includes(state);
}

function showProblem(text) {
  $("problem").textContent = text;
  $("problem").hidden = text === "";
}

function showSilence() {
  $("silence-value").textContent = `${$("silence").value} ms`;
}

function showLevel(peak) {
  const decibels = Math.max(-60, Math.min(0, 20 * Math.log10(peak || 1e-6)));
  $("level").setAttribute("aria-valuenow", Math.round(decibels));
  $("level-bar").style.clipPath = `inset(0 ${(-100 * decibels) / 60}% 0 0)`;
}

/** 83400 ms → 1:23.4 */
function clock(milliseconds) {
  const tenths = Math.floor(milliseconds / 100);
  const seconds = Math.floor(tenths / 10);
  return `${Math.floor(seconds / 60)}:${String(seconds % 60).padStart(2, "0")}.${tenths % 10}`;
}

function make(tag, className = "") {
  const element = document.createElement(tag);
  element.className = className;
  return element;
}
