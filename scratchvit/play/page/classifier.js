// The page of a classifier: picture → patches → attention → answer, all of it live.

import {pictureOf, unpacked} from "./arrays.js";
import {answerPart} from "./answer.js";
import {attentionPart} from "./attention.js";
import {ask, element, latest, section} from "./common.js";
import {patchesPart} from "./patches.js";
import {sources} from "./sources.js";

export async function show(page, model) {
  const answer = answerPart(model);
  const attention = model.layers.length ? attentionPart(model) : noAttentionPart(model);
  const patches = model.layers.length ? patchesPart(model, attention.choose) : pixelsPart(model);
  const answerTo = latest(async question => {
    const found = await question(), picture = pictureOf(found.picture);
    answer.show(found);
    patches.show(picture, found.tokens && unpacked(found.tokens));
    attention.show(found, picture);
  });
  page.classList.add("classifier");
  page.append(
    element("div", {}, sources(model, answerTo)),
    element("div", {}, answer.part, patches.part),
    element("div", {}, attention.part),
  );
  if (model.layers.length) patches.choose(null);
  const first = page.querySelector(".example");
  if (first) first.click();
  else await answerTo(() => ask("strokes", "[]"));     // white paper
}

// Where patches would be, for a model without attention between them: the picture as the model sees it.
function pixelsPart(model) {
  const canvas = element("canvas", {class: "patches", role: "img", "aria-label": "The picture as the model sees it"});
  const part = section("patches", "What the model sees", `The picture is prepared: ${model.prepares}.`, canvas);

  function show(picture) {
    canvas.width = picture.width;
    canvas.height = picture.height;
    canvas.getContext("2d").drawImage(picture, 0, 0);
  }
  return {part, show};
}

function noAttentionPart(model) {
  return {part: section("attention", "Attention", model.without), show: () => {}};
}
