// The page: choose an image, score it, see the answer or the error.

const TOKEN = "reward-token";
const RETRY_MS = 1000;

/** The image: {file, dataUrl, size: {width, height} or null when it cannot be shown}, or null. */
let chosen = null;
/** AbortController of the call under way, or null. */
let underWay = null;
/** The reward's metadata. */
let about = { name: "", score: { name: "score" }, sub_scores: [] };

function $(id) {
  return document.getElementById(id);
}

function element(tag, properties, ...children) {
  const node = Object.assign(document.createElement(tag), properties);
  node.append(...children);
  return node;
}

// Calls

/** A call that the service refused: `problem` is its application/problem+json. */
class Refusal extends Error {
  constructor(problem) {
    super(problem.detail);
    this.problem = problem;
  }
}

/** The JSON answer. Throws Refusal, or TypeError when there is no answer. */
async function ask(path, options = {}) {
  const headers = { ...options.headers };
  const token = sessionStorage.getItem(TOKEN);
  if (token) headers.Authorization = `Bearer ${token}`;
  const response = await fetch(path, { ...options, headers });
  const isJson = /^application\/(problem\+)?json/.test(response.headers.get("Content-Type") ?? "");
  if (response.ok && isJson) return response.json();
  const { status, statusText } = response;
  const unknown = { status, title: statusText, detail: `HTTP ${status} ${statusText}` };
  throw new Refusal(isJson ? await response.json() : unknown);
}

async function loadMetadata() {
  try {
    showAbout(await ask("v1/metadata"));
    hideError();
  } catch (error) {
    if (error.problem?.reason === "LOADING") {
      if ($("error").hidden)
        showNotice("The model is loading", "The page goes on by itself when it is there.");
      setTimeout(loadMetadata, error.problem.retry_after_ms ?? RETRY_MS);
    } else showFailure(error);
  }
}

async function score() {
  const metadata = checkedMetadata();
  if (!checkedImage() || metadata === undefined) return;
  const item = { prompt: $("prompt").value, image: chosen.dataUrl };
  if (metadata) item.metadata = metadata;
  underWay = new AbortController();
  const stopClock = startClock();
  hideError();
  showBusy(true);
  try {
    const started = performance.now();
    const answer = await ask("v1/score", {
      method: "POST",
      headers: { "Content-Type": "application/json" },
      body: JSON.stringify({ items: [item], include_details: true }),
      signal: underWay.signal,
    });
    showResult(answer, performance.now() - started);
  } catch (error) {
    if (error.name === "AbortError") $("status").textContent = "Cancelled";
    else showFailure(error);
  } finally {
    underWay = null;
    stopClock();
    showBusy(false);
  }
}

/** The score of the one item, or its error. */
function showResult({ results: [{ score, error }], timing }, roundTripMs) {
  if (score) {
    showAnswer(score, timing, roundTripMs);
    return;
  }
  showProblem(error.reason, error.message, error.retryable ? "Trying again may help." : "");
}

// What goes in

function checkedImage() {
  setFieldError("file", chosen ? "" : "Choose an image first.", "image-error");
  if (!chosen) $("file").focus();
  return chosen !== null;
}

/** The metadata; null for none, undefined when what stands in the field is not a JSON object. */
function checkedMetadata() {
  const { metadata, problem } = readMetadata();
  setFieldError("metadata", problem, "metadata-error");
  if (problem) $("metadata").focus();
  return problem ? undefined : metadata;
}

function readMetadata() {
  const text = $("metadata").value.trim();
  if (!text) return { metadata: null, problem: "" };
  try {
    const metadata = JSON.parse(text);
    const isObject = metadata?.constructor === Object;
    return { metadata, problem: isObject ? "" : "Metadata is a JSON object: { ... }" };
  } catch (error) {
    return { metadata: null, problem: `Not JSON: ${error.message}` };
  }
}

function setFieldError(field, message, place) {
  $(place).textContent = message;
  $(place).hidden = !message;
  $(field).setAttribute("aria-invalid", String(Boolean(message)));
}

async function chooseImage(file) {
  underWay?.abort(); // its answer would be drawn over another image
  try {
    const dataUrl = await dataUrlOf(file);
    chosen = { file, dataUrl, size: await showPreview(file, dataUrl) };
  } catch (error) {
    setFieldError("file", `The file cannot be read: ${error.message}`, "image-error");
    return;
  }
  setFieldError("file", "", "image-error");
  clearAnswer();
  showSnippets();
}

function dataUrlOf(file) {
  return new Promise((resolve, reject) => {
    const reader = new FileReader();
    reader.onload = () => resolve(reader.result);
    reader.onerror = () => reject(reader.error);
    reader.readAsDataURL(file);
  });
}

/** Shows the image; returns its {width, height}, or null when the browser cannot show it. */
async function showPreview(file, dataUrl) {
  const preview = $("preview");
  preview.alt = `The image to score: ${file.name}`;
  preview.src = dataUrl;
  const isShown = await preview.decode().then(() => true, () => false);
  const size = isShown ? { width: preview.naturalWidth, height: preview.naturalHeight } : null;
  const shape = size ? `${size.width} × ${size.height}` : "the browser cannot show this file";
  if (size) $("picture").style.setProperty("--ratio", size.width / size.height);
  $("picture").hidden = !size;
  $("image-facts").textContent = [file.name, shape, fileSize(file.size)].join(" · ");
  $("drop").classList.add("compact");
  $("drop-action").textContent = "Choose another";
  return size;
}

function fileSize(bytes) {
  return bytes < 1e6 ? `${(bytes / 1e3).toFixed(1)} kB` : `${(bytes / 1e6).toFixed(1)} MB`;
}

// What comes out

function showAbout(metadata) {
  about = metadata;
  document.title = `${metadata.name} · try it`;
  $("name").textContent = metadata.name;
  $("description").textContent = metadata.description;
  $("prompt-hint").textContent = metadata.prompt_required ? "" : "not required";
  $("about").textContent = [
    `version ${metadata.version}`,
    metadata.revision && `revision ${metadata.revision}`,
    metadata.device && `on ${metadata.device}`,
    metadata.license && `licence: ${metadata.license}`,
  ].filter(Boolean).join(" · ");
  if (metadata.metadata_schema && $("metadata-field").hidden) {
    $("metadata-field").hidden = false;
    const example = readableJson(exampleOf(JSON.parse(metadata.metadata_schema)) ?? {});
    $("metadata").value = example;
    $("metadata").rows = Math.min(example.split("\n").length, 16);
  }
  showSnippets();
}

function showBusy(isBusy) {
  $("submit").textContent = isBusy ? "Scoring" : "Score";
  $("submit").setAttribute("aria-disabled", String(isBusy));
  $("score-form").setAttribute("aria-busy", String(isBusy));
  $("cancel").hidden = !isBusy;
  if (isBusy) $("status").textContent = "Scoring";
}

/** Shows the seconds that a call has taken; returns what ends it. */
function startClock() {
  const place = $("elapsed");
  const before = [...place.childNodes];
  const started = performance.now();
  const tick = () =>
    place.replaceChildren(`${((performance.now() - started) / 1000).toFixed(1)} s`);
  tick();
  const timer = setInterval(tick, 100);
  return () => {
    clearInterval(timer);
    place.replaceChildren(...before);
  };
}

// Errors

function showFailure(error) {
  if (!(error instanceof Refusal)) {
    showProblem("NO ANSWER", `The service did not answer (${error.message}).`);
    return;
  }
  const { status, title, detail, reason, retry_after_ms: wait, request_id: id } = error.problem;
  if (status === 401) {
    askForToken();
    if (!sessionStorage.getItem(TOKEN)) return; // not a mistake: the form says what is needed
  }
  const hints = [];
  if (wait) hints.push(`Try again in ${Math.ceil(wait / 1000)} s.`);
  if (id) hints.push(`Request ${id}.`);
  showProblem(reason ?? title, detail, hints.join(" "));
}

function showProblem(reason, message, hint = "") {
  clearAnswer();
  showNotice(reason, message, hint);
  $("error").classList.add("failed");
}

function showNotice(title, message, hint = "") {
  $("error").classList.remove("failed");
  $("error").replaceChildren(
    element("strong", {}, title),
    element("p", {}, message),
    ...(hint ? [element("p", { className: "hint" }, hint)] : []),
  );
  $("error").hidden = false;
}

function hideError() {
  $("error").hidden = true;
}

function askForToken() {
  $("token-form").hidden = false;
  $("token").focus();
}

// The same call, to copy

function showSnippets() {
  const { metadata, problem } = readMetadata();
  if (problem) return; // half typed: the last complete one stays
  const call = {
    prompt: $("prompt").value,
    metadata,
    fileName: chosen?.file.name || "image.png",
    url: new URL(".", location.href).href.replace(/\/$/, ""),
    usesToken: sessionStorage.getItem(TOKEN) !== null,
  };
  $("curl").textContent = curlSnippet(call);
  $("python").textContent = pythonSnippet(call);
}

async function copy(button) {
  const source = $(button.dataset.copies);
  try {
    await navigator.clipboard.writeText(source.textContent);
    button.textContent = "Copied";
  } catch {
    getSelection().selectAllChildren(source); // pages without TLS have no clipboard
    button.textContent = "Selected";
  }
  setTimeout(() => (button.textContent = "Copy"), 1500);
}

// Events

$("file").addEventListener("change", ({ target }) => {
  if (target.files[0]) chooseImage(target.files[0]);
  target.value = ""; // the same file can be chosen again
});
$("score-form").addEventListener("submit", (event) => {
  event.preventDefault();
  if (!underWay) score();
});
$("score-form").addEventListener("keydown", (event) => {
  if (event.key === "Enter" && (event.ctrlKey || event.metaKey)) $("score-form").requestSubmit();
});
$("score-form").addEventListener("input", showSnippets);
$("cancel").addEventListener("click", () => underWay?.abort());
$("show-boxes").addEventListener("change", ({ target }) =>
  $("picture").classList.toggle("bare", !target.checked),
);
$("token-form").addEventListener("submit", (event) => {
  event.preventDefault();
  sessionStorage.setItem(TOKEN, $("token").value);
  $("token").value = "";
  $("token-form").hidden = true;
  $("prompt").focus();
  loadMetadata();
});
for (const button of document.querySelectorAll(".copy"))
  button.addEventListener("click", () => copy(button));

document.addEventListener("paste", (event) => {
  const [file] = event.clipboardData.files;
  if (file) {
    event.preventDefault();
    chooseImage(file);
  }
});
for (const name of ["dragover", "dragleave", "drop"])
  document.addEventListener(name, (event) => {
    if (!event.dataTransfer.types.includes("Files")) return;
    event.preventDefault();
    $("drop").classList.toggle("over", name === "dragover");
    if (name === "drop") chooseImage(event.dataTransfer.files[0]);
  });

showSnippets();
loadMetadata();
