// The ways to give the model a picture: draw it, choose, drop or paste a file, or take one of the test pictures.

import {pictureOf} from "./arrays.js";
import {ask, element, section} from "./common.js";
import {drawingPad} from "./pad.js";

// The part of the page with all of them. `shown(question)` is called with a function that asks the server for the
// answer to the latest picture.
export function sources(model, shown) {
  let file = null;
  const inverted = element("input", {type: "checkbox", id: "inverted", onchange: sendFile});
  const chooser = element("input", {
    type: "file", id: "file", accept: "image/*", onchange: () => take(chooser.files[0]),
  });

  function take(chosen) {
    if (!chosen) return;
    file = chosen;
    sendFile();
  }
  function sendFile() {
    if (file) use(() => ask(`picture?inverted=${Number(inverted.checked)}`, file));
  }
  // Show another picture than what is drawn, which is then cleared: the page shows one picture everywhere.
  function use(question, chosen = null) {
    pad.clear();
    mark(chosen);
    shown(question);
  }
  function mark(chosen) {
    examples.forEach(button => button.setAttribute("aria-pressed", String(button === chosen)));
  }

  document.addEventListener("dragover", event => event.preventDefault());
  document.addEventListener("drop", event => {
    event.preventDefault();
    take(event.dataTransfer.files[0]);
  });
  document.addEventListener("paste", event => take(event.clipboardData.files[0]));

  const pad = drawingPad(model.pen, strokes => {
    const body = JSON.stringify(strokes);
    file = null;
    mark(null);
    shown(() => ask("strokes", body));
  });
  const examples = model.examples.map(({label, picture}, number) => {
    const canvas = pictureOf(picture);
    canvas.setAttribute("aria-hidden", "true");
    const name = `Test picture ${number + 1}: ${label}`;
    const button = element("button", {type: "button", class: "example", "aria-label": name, title: name}, canvas);
    button.addEventListener("click", () => use(() => ask(`example?number=${number}`), button));
    return button;
  });
  return section("picture", "Picture", model.redrawn
    ? "Draw a digit. The model is given it in the size and with the width of line that its training digits have."
    : "Draw something, or give the model a picture file.",
  pad.part,
  element("h3", {}, "or a file"),
  element("div", {class: "row"}, element("label", {class: "button", for: "file"}, "Choose a picture", chooser),
    element("label", {for: "inverted", class: "check"}, inverted, " invert its colours")),
  element("p", {class: "quiet"}, "You can also drop it on the page or paste it. It stays on this machine."),
  ...(examples.length ? [
    element("h3", {}, "or a test digit"), element("p", {class: "quiet"}, "The model was not trained on these."),
    element("div", {class: "examples"}, ...examples),
  ] : []));
}
