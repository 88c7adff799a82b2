// What the pages of a classifier and of a detector share, and the start: ask which model there is, then load its page.

const PAGES = {classifier: "./classifier.js", detector: "./detector.js"};

// What the server refused, or that it is gone: a sentence for the reader.
export class Refused extends Error {}

// Ask the server: ask("model") is GET api/model, and with a body it is a POST. Throws Refused with its sentence.
export async function ask(name, body) {
  let response;
  try {
    response = await fetch(`api/${name}`, body === undefined ? {} : {method: "POST", body});
  } catch {
    throw new Refused("The server does not answer: is `scratchvit play` still running?");
  }
  const answer = await response.json();
  if (!response.ok) throw new Refused(answer.error);
  return answer;
}

// An element with attributes and children: element("button", {type: "button", onclick: undo}, "Undo").
export function element(tag, attributes = {}, ...children) {
  const made = document.createElement(tag);
  for (const [name, value] of Object.entries(attributes)) {
    if (typeof value === "function") made.addEventListener(name.slice(2), value);
    else if (typeof value === "boolean") made.toggleAttribute(name, value);
    else made.setAttribute(name, value);
  }
  made.append(...children);
  return made;
}

// A titled part of the page. What it is about is a sentence below the title.
export function section(name, title, about, ...children) {
  const heading = element("h2", {id: `${name}-title`}, title);
  return element("section", {id: name, "aria-labelledby": heading.id}, heading,
    element("p", {class: "quiet"}, about), ...children);
}

// Show a sentence about what went wrong, or hide it: say("").
export function say(sentence) {
  const message = document.getElementById("message");
  message.hidden = !sentence;
  if (message.textContent !== sentence) message.textContent = sentence;
}

// A function that calls `work` with its latest arguments, one call at a time. What comes while it works waits, and of
// what waits only the last is kept, so that the page never shows an old answer after a new one.
export function latest(work) {
  let waiting = null, working = false;
  return async (...words) => {
    waiting = words;
    if (working) return;
    working = true;
    while (waiting) {
      const next = waiting;
      waiting = null;
      try {
        await work(...next);
        say("");
      } catch (error) {
        if (!(error instanceof Refused)) console.error(error);      // a bug
        say(error.message);
      }
    }
    working = false;
  };
}

async function start() {
  try {
    const model = await ask("model");
    document.getElementById("about").textContent = model.about;
    document.title = `${model.name} · scratchvit play`;
    const page = await import(PAGES[model.kind]);
    await page.show(document.getElementById("page"), model);
  } catch (error) {
    document.getElementById("about").textContent = "";
    say(error.message);
  }
}

start();
