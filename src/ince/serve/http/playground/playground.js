// The playground: columns of models that answer one prompt, each from its own conversation.
// It talks to the server that it came from, by the routes that every client has, and to nobody else.
// What a model says is put in as text, never as markup.

const at = (id) => document.getElementById(id);
const MOST_COLUMNS = 3;
const columns = [];
let models = [];
let stopping = null; // what ends the answers that are being written

// ------------------------------------------------------------------------------------- server

function headers(more = {}) {
  const key = sessionStorage.getItem("key");
  return key ? { ...more, Authorization: `Bearer ${key}` } : more;
}

async function explained(response) {
  let said = `${response.status} ${response.statusText}`;
  try {
    said = (await response.json()).error.message;
  } catch { /* not in OpenAI's form: the status has to do */ }
  const wait = response.headers.get("Retry-After");
  return wait ? `${said} Try again in ${wait} s.` : said;
}

function tell(text, wrong = false) {
  at("state").textContent = text;
  at("state").classList.toggle("wrong", wrong);
}

async function readModels() {
  let response;
  try {
    response = await fetch("v1/models", { headers: headers() });
  } catch {
    tell("the server does not answer", true);
    return;
  }
  if (response.status === 401) {
    at("key-form").hidden = false;
    tell(sessionStorage.getItem("key") ? "the key is not known" : "this server wants a key", true);
    at("key").focus();
    return;
  }
  if (!response.ok) {
    tell(await explained(response), true);
    return;
  }
  at("key-form").hidden = true;
  models = (await response.json()).data;
  const adapters = models.filter((model) => model.parent).length;
  const base = models.find((model) => !model.parent);
  tell(`${base ? base.id : "no base"}, ${adapters} ${adapters === 1 ? "adapter" : "adapters"}`);
  columns.forEach(offerModels);
  if (!columns.length) addColumn();
  offerColumn();
}

// Events of a stream, one object each. A network packet may end anywhere, in a letter too.
async function* events(response) {
  const reader = response.body.pipeThrough(new TextDecoderStream()).getReader();
  let text = "";
  for (;;) {
    const { value, done } = await reader.read();
    if (done) return;
    text += value;
    const lines = text.split("\n");
    text = lines.pop();
    for (const line of lines) {
      if (!line.startsWith("data:")) continue;
      const data = line.slice(5).trim();
      if (data === "[DONE]") return;
      yield JSON.parse(data);
    }
  }
}

// ------------------------------------------------------------------------------------ columns

function offerModels(column) {
  const chosen = column.model.value;
  column.model.replaceChildren(
    ...models.map((model) => new Option(model.parent ? model.id : `${model.id} (base)`, model.id)),
  );
  if (models.some((model) => model.id === chosen)) column.model.value = chosen;
}

function addColumn() {
  if (columns.length >= MOST_COLUMNS) return;
  const section = at("column").content.cloneNode(true).querySelector("section");
  const column = {
    section,
    model: section.querySelector(".model"),
    turns: section.querySelector(".turns"),
    messages: [],
  };
  offerModels(column);
  // The next model that no other column shows.
  const shown = new Set(columns.map((other) => other.model.value));
  const free = models.find((model) => !shown.has(model.id));
  if (free) column.model.value = free.id;
  column.model.addEventListener("change", () => forget(column));
  section.querySelector(".remove").addEventListener("click", () => removeColumn(column));
  columns.push(column);
  at("columns").append(section);
  offerColumn();
}

function offerColumn() {
  at("compare").disabled = columns.length >= MOST_COLUMNS || columns.length >= models.length;
}

function removeColumn(column) {
  if (columns.length === 1) return;
  columns.splice(columns.indexOf(column), 1);
  column.stop?.abort();
  column.section.remove();
  offerColumn();
  at("prompt").focus();
}

function forget(column) {
  column.messages = [];
  column.turns.replaceChildren();
  for (const name of ["first", "rate", "count"]) figure(column, name, "");
}

function figure(column, name, text) {
  column.section.querySelector(`.${name}`).textContent = text;
}

function addTurn(column, kind, text) {
  const item = document.createElement("li");
  item.className = kind;
  item.textContent = text;
  column.turns.append(item);
  column.turns.scrollTop = column.turns.scrollHeight;
  return item;
}

// ------------------------------------------------------------------------------------ answers

function number(id) {
  const value = at(id).valueAsNumber;
  return Number.isFinite(value) ? value : undefined;
}

function request(column, prompt) {
  const body = {
    model: column.model.value,
    max_tokens: number("max-tokens"),
    temperature: number("temperature"),
    top_p: number("top-p"),
    seed: number("seed"),
    stream: true,
    stream_options: { include_usage: true },
  };
  if (at("mode").value === "completion") return ["v1/completions", { ...body, prompt }];
  const system = at("system").value.trim();
  const opening = system ? [{ role: "system", content: system }] : [];
  const messages = [...opening, ...column.messages, { role: "user", content: prompt }];
  return ["v1/chat/completions", { ...body, messages }];
}

async function answer(column, prompt, signal) {
  const [route, body] = request(column, prompt);
  addTurn(column, "asked", prompt);
  const item = addTurn(column, "going", "");
  const begun = performance.now();
  let first = null;
  let last = null;
  let pieces = 0;
  let text = "";
  let usage = null;
  let reason = null;
  for (const name of ["first", "rate", "count"]) figure(column, name, "");
  try {
    const response = await fetch(route, {
      method: "POST",
      headers: headers({ "Content-Type": "application/json" }),
      body: JSON.stringify(body),
      signal,
    });
    if (!response.ok) throw new Error(await explained(response));
    for await (const event of events(response)) {
      if (event.error) throw new Error(event.error.message);
      usage = event.usage ?? usage;
      const choice = event.choices?.[0];
      if (!choice) continue;
      reason = choice.finish_reason ?? reason;
      const piece = choice.delta?.content ?? choice.text ?? "";
      if (!piece) continue;
      last = performance.now();
      first ??= last;
      pieces += 1;
      text += piece;
      const follows = column.turns.scrollHeight - column.turns.scrollTop - column.turns.clientHeight < 60;
      item.textContent = text;
      if (follows) column.turns.scrollTop = column.turns.scrollHeight;
      figure(column, "first", `first token ${Math.round(first - begun)} ms`);
      showRate(column, first, last, pieces);
    }
    if (usage) {
      // Pieces are not tokens: what was held back for a whole letter comes with the next.
      showRate(column, first, last, usage.completion_tokens);
      figure(column, "count", `${usage.prompt_tokens} + ${usage.completion_tokens} tokens`);
    }
    if (reason === "length") item.classList.add("cut");
    column.messages.push({ role: "user", content: prompt }, { role: "assistant", content: text });
  } catch (error) {
    if (error.name === "AbortError") {
      item.classList.add("cut");
      if (text) column.messages.push({ role: "user", content: prompt }, { role: "assistant", content: text });
    } else {
      addTurn(column, "wrong", error.message);
      if (!text) item.remove();
    }
  } finally {
    item.classList.remove("going");
  }
}

function showRate(column, first, last, tokens) {
  if (tokens > 1 && last > first) {
    figure(column, "rate", `${((tokens - 1) / ((last - first) / 1000)).toFixed(1)} tokens/s`);
  }
}

async function send() {
  const prompt = at("prompt").value;
  if (!prompt.trim() || stopping || !models.length) return;
  at("prompt").value = "";
  const all = new AbortController();
  stopping = all;
  at("send").hidden = true;
  at("stop").hidden = false;
  await Promise.all(columns.map((column) => {
    column.stop = new AbortController();
    return answer(column, prompt, AbortSignal.any([all.signal, column.stop.signal]));
  }));
  stopping = null;
  at("send").hidden = false;
  at("stop").hidden = true;
  at("prompt").focus();
}

// ------------------------------------------------------------------------------------- upload

async function base64(file) {
  const url = await new Promise((resolve, reject) => {
    const reader = new FileReader();
    reader.onload = () => resolve(reader.result);
    reader.onerror = () => reject(reader.error);
    reader.readAsDataURL(file);
  });
  return url.slice(url.indexOf(",") + 1);
}

function sayUpload(text, wrong = false) {
  at("upload-said").textContent = text;
  at("upload-said").classList.toggle("wrong", wrong);
}

async function upload() {
  const name = at("upload-name").value;
  let config;
  try {
    config = JSON.parse(await at("upload-config").files[0].text());
  } catch (error) {
    sayUpload(`adapter_config.json is not JSON: ${error.message}`, true);
    return;
  }
  sayUpload("uploading and checking");
  try {
    const response = await fetch("v1/adapters/upload", {
      method: "POST",
      headers: headers({ "Content-Type": "application/json" }),
      body: JSON.stringify({ name, config, weights: await base64(at("upload-weights").files[0]) }),
    });
    if (!response.ok) throw new Error(await explained(response));
    sayUpload(`${name} can be used now`);
    await readModels();
  } catch (error) {
    sayUpload(error.message, true);
  }
}

// --------------------------------------------------------------------------------------- keys

at("ask").addEventListener("submit", (event) => {
  event.preventDefault();
  send();
});
at("prompt").addEventListener("keydown", (event) => {
  // An input method ends a word with Enter, too.
  if (event.key === "Enter" && !event.shiftKey && !event.isComposing) {
    event.preventDefault();
    send();
  }
});
document.addEventListener("keydown", (event) => {
  if (event.key === "Escape" && !at("upload").open) stopping?.abort();
  if (event.altKey && event.key === "c") addColumn();
  if (event.altKey && event.key === "n") columns.forEach(forget);
});
at("stop").addEventListener("click", () => stopping?.abort());
at("compare").addEventListener("click", addColumn);
at("clear").addEventListener("click", () => {
  stopping?.abort();
  columns.forEach(forget);
  at("prompt").focus();
});
at("settings-button").addEventListener("click", (event) => {
  at("settings").hidden = !at("settings").hidden;
  event.currentTarget.setAttribute("aria-expanded", String(!at("settings").hidden));
});
at("upload-button").addEventListener("click", () => {
  sayUpload("");
  at("upload").showModal();
});
at("upload-close").addEventListener("click", () => at("upload").close());
at("upload-form").addEventListener("submit", (event) => {
  event.preventDefault();
  upload();
});
at("key-form").addEventListener("submit", (event) => {
  event.preventDefault();
  sessionStorage.setItem("key", at("key").value.trim());
  at("key").value = "";
  readModels();
});

readModels();
