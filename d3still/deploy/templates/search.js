// The search page: a picture in, the nearest gallery images out. Where onnxruntime-web is there, the query network
// runs here and only its feature leaves the device. Names are set as text, never as markup.

const TOPK = 12;
const FLOAT_BYTES = 4;
const at = (id) => document.getElementById(id);
const settings = await (await fetch("/settings")).json();
const network = settings.in_browser ? await loadNetwork() : null;
let asked = 0; // answers to a picture that is no longer the last one are dropped

at("about").textContent =
  `${settings.images.toLocaleString("en")} images by ${settings.gallery}; query: ${settings.query ?? "none, this service takes features only"}`;
at("file").addEventListener("change", (event) => ask(event.target.files[0]));
at("camera").addEventListener("change", (event) => ask(event.target.files[0]));
for (const kind of ["dragover", "dragleave", "drop"]) {
  document.addEventListener(kind, (event) => {
    event.preventDefault();
    at("drop").classList.toggle("over", kind === "dragover");
    if (kind === "drop") ask(event.dataTransfer.files[0]);
  });
}
for (const sample of settings.samples) {
  const button = document.createElement("button");
  const image = document.createElement("img");
  image.src = sample.image;
  image.alt = image.title = `sample query ${sample.identity ?? ""}`;
  button.append(image);
  button.addEventListener("click", async () => {
    const answer = await fetch(sample.image);
    if (answer.ok) ask(await answer.blob(), sample.identity);
    else say("this sample is no longer there");
  });
  at("samples").append(button);
}
document.body.dataset.ready = network ? "client" : "server";

async function loadNetwork() {
  try {
    const runtime = await import("/runtime/ort.wasm.min.mjs");
    runtime.env.wasm.wasmPaths = "/runtime/";
    runtime.env.wasm.numThreads = 1;
    return { runtime, session: await runtime.InferenceSession.create("/query.onnx") };
  } catch (error) {
    console.warn("the query network cannot run here; the server embeds", error);
    return null;
  }
}

async function ask(file, identity = null) {
  if (!file) return;
  const turn = ++asked;
  at("answers").replaceChildren();
  at("facts").hidden = true;
  say("searching …");
  try {
    const bitmap = await decoded(file);
    show(file, bitmap);
    const began = performance.now();
    const feature = network ? await embed(bitmap) : null;
    const embedding = performance.now() - began;
    const [answer, sent] = await search(feature, file);
    if (turn === asked) present(answer, sent, file, embedding, identity);
  } catch (error) {
    if (turn === asked) say(error.message);
  }
}

async function decoded(file) {
  let bitmap;
  try {
    bitmap = await createImageBitmap(file);
  } catch {
    throw new Error("this file is no picture that the browser can read");
  }
  if (bitmap.width * bitmap.height > settings.pixels) {
    throw new Error(`this picture has more than ${settings.pixels.toLocaleString("en")} pixels`);
  }
  return bitmap;
}

function drawn(canvas, bitmap, width, height) {
  [canvas.width, canvas.height] = [width, height];
  const context = canvas.getContext("2d", { willReadFrequently: true });
  context.fillStyle = "white"; // what is transparent lies over white, as in training
  context.fillRect(0, 0, width, height);
  context.imageSmoothingQuality = "high";
  context.drawImage(bitmap, 0, 0, width, height);
  return context;
}

function show(file, bitmap) {
  URL.revokeObjectURL(at("original").src);
  at("original").src = URL.createObjectURL(file);
  if (settings.size) {
    const [height, width] = settings.size;
    drawn(at("seen"), bitmap, width, height);
    at("size").textContent = `what the query network sees: ${width} × ${height}`;
  }
  at("query").hidden = false;
}

async function embed(bitmap) {
  const { width, height } = bitmap;
  const rgba = drawn(document.createElement("canvas"), bitmap, width, height).getImageData(0, 0, width, height).data;
  const count = width * height;
  const planes = new Uint8Array(3 * count);
  for (let place = 0; place < count; place++) {
    for (let channel = 0; channel < 3; channel++) planes[channel * count + place] = rgba[4 * place + channel];
  }
  const pixels = new network.runtime.Tensor("uint8", planes, [1, 3, height, width]);
  const outputs = await network.session.run({ [network.session.inputNames[0]]: pixels });
  return outputs[network.session.outputNames[0]].data;
}

async function search(feature, file) {
  let answer, sent;
  if (feature) {
    sent = feature.length * FLOAT_BYTES;
    const body = new Float32Array(feature);
    const headers = { "Content-Type": "application/octet-stream" };
    answer = await fetch(`/search?topk=${TOPK}`, { method: "POST", headers, body });
  } else {
    if (file.size > settings.upload) throw new Error(`this file has more than ${bytes(settings.upload)}`);
    sent = file.size;
    const body = new FormData();
    body.append("image", file);
    body.append("topk", TOPK);
    answer = await fetch("/search", { method: "POST", body });
  }
  const content = await answer.json();
  if (!answer.ok) throw new Error(content.detail);
  return [content, sent];
}

function present(answer, sent, file, embedding, identity) {
  const here = answer.embedded_by === "client";
  at("where").textContent = here ? "on this device: the picture did not leave it" : "by the server: the picture was sent";
  at("embedding").textContent = milliseconds(here ? embedding : 1000 * answer.seconds.embed);
  at("searching").textContent = milliseconds(1000 * answer.seconds.search);
  at("picture-bytes").textContent = bytes(file.size);
  at("sent-bytes").textContent = bytes(sent) + (here ? ", the feature" : ", the picture");
  at("facts").hidden = false;
  at("answers").replaceChildren(...answer.results.map((result, rank) => item(result, rank + 1, identity)));
  say(answer.results.length ? `${answer.results.length} answers` : "the gallery holds no image");
}

function item(result, rank, identity) {
  const entry = document.createElement("li");
  const image = document.createElement("img");
  image.src = result.image;
  image.alt = `answer ${rank}`;
  image.loading = "lazy";
  const score = document.createElement("b");
  score.textContent = `${rank}. ${result.score.toFixed(4)}`;
  const name = document.createElement("div");
  name.className = "identity";
  name.textContent = shown(result.identity ?? "");
  entry.append(image, score, name);
  if (identity !== null && result.identity !== null) {
    const right = result.identity === identity;
    entry.className = right ? "right" : "wrong";
    const mark = document.createElement("div");
    mark.textContent = right ? "✓ right" : "✗ wrong";
    entry.append(mark);
  }
  return entry;
}

// As Python's d3still.text.visible: what turns the reading direction or moves the cursor is shown as it is written.
function shown(name) {
  return name.replace(/[\p{Cc}\p{Cf}\p{Co}\p{Cs}\p{Zl}\p{Zp}]/gu, (letter) =>
    "\u200c\u200d".includes(letter) ? letter : `\\u${letter.codePointAt(0).toString(16).padStart(4, "0")}`,
  );
}

function say(text) {
  at("status").textContent = text;
}

function milliseconds(value) {
  return `${value.toFixed(1)} ms`;
}

function bytes(count) {
  return count < 10_000 ? `${count} bytes` : `${(count / 1000).toFixed(0)} kB`;
}
