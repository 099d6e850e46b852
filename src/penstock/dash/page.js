"use strict";
// Shows the words of the mark under the pointer. The page is complete without it.
const tip = document.getElementById("tip");
function showTip(text, x, y) {
  tip.hidden = false;
  tip.textContent = text;
  const { offsetWidth: width, offsetHeight: height } = tip;
  const left = x + 14 + width > window.innerWidth ? x - 14 - width : x + 14;
  const top = y + 14 + height > window.innerHeight ? y - 14 - height : y + 14;
  tip.style.left = `${Math.max(4, left)}px`;
  tip.style.top = `${Math.max(4, top)}px`;
}
document.addEventListener("pointermove", (event) => {
  const mark = event.target instanceof Element ? event.target.closest("[data-tip]") : null;
  if (mark === null) tip.hidden = true;
  else showTip(mark.getAttribute("data-tip"), event.clientX, event.clientY);
});
document.addEventListener("pointerleave", () => { tip.hidden = true; });
