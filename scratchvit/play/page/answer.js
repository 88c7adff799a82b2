// The answer: a bar for the logit of each class, and its probability.

import {element, section} from "./common.js";

const MOST = 10;        // classes that are shown; of more, the best

// The part of the page with the answer: {part, show(answer)}.
export function answerPart(model) {
  const rows = element("tbody"), spoken = element("p", {id: "spoken", role: "status", "aria-live": "polite"}, " ");
  const few = model.classes.length <= MOST;
  let speaking = null;

  function show({logits, probabilities}) {
    const order = [...logits.keys()].sort((a, b) => logits[b] - logits[a]);
    const best = order[0], shown = few ? [...logits.keys()] : order.slice(0, MOST);
    const among = shown.map(label => logits[label]), low = Math.min(0, ...among), high = Math.max(0, ...among);
    rows.replaceChildren(...shown.map(label => {
      const bar = element("span", {class: "bar"}), zero = -low / (high - low || 1);
      const length = logits[label] / (high - low || 1);
      bar.style.left = `${100 * Math.min(zero, zero + length)}%`;
      bar.style.width = `${100 * Math.abs(length)}%`;
      return element("tr", label === best ? {class: "best"} : {},
        element("th", {scope: "row"}, model.classes[label]),
        element("td", {class: "bars"}, bar),
        element("td", {}, logits[label].toFixed(2).replace("-", "−")),
        element("td", {}, percent(probabilities[label])));
    }));
    clearTimeout(speaking);     // a screen reader hears the answer when the pen rests
    speaking = setTimeout(() => {
      const sure = percent(probabilities[best]);
      spoken.textContent = `The answer is ${model.classes[best]}, with a probability of ${sure}.`;
    }, 300);
  }

  const names = ["class", "", "logit", "probability"].map(name => element("th", {scope: "col"}, name));
  const table = element("table", {}, element("caption", {}, few ? "All classes" : `The ${MOST} most probable classes`),
    element("thead", {}, element("tr", {}, ...names)), rows);
  const part = section("answer", "Answer",
    "Logits are the numbers that the last layer computes; softmax turns them into probabilities.", spoken, table);
  return {part, show};
}

function percent(share) {
  if (share > 0.999 && share < 1) return ">\u00a099.9\u00a0%";
  return share < 0.001 ? "<\u00a00.1\u00a0%" : `${(100 * share).toFixed(1)}\u00a0%`;
}
