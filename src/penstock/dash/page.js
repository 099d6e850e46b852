"use strict";
// Shows the words of the mark under the pointer. The page is complete without it.
const tip = document.getElementById("tip");
document.addEventListener("pointermove", (event) => {
  const mark = event.target instanceof Element ? event.target.closest("[data-tip]") : null;
  tip.hidden = mark === null;
  if (mark === null) return;
  tip.textContent = mark.getAttribute("data-tip");
  const { offsetWidth: width, offsetHeight: height } = tip;
  const left = event.clientX + 14 + width > window.innerWidth ? event.clientX - 14 - width : event.clientX + 14;
  const top = event.clientY + 14 + height > window.innerHeight ? event.clientY - 14 - height : event.clientY + 14;
  tip.style.left = `${Math.max(4, left)}px`;
  tip.style.top = `${Math.max(4, top)}px`;
});
document.addEventListener("pointerleave", () => { tip.hidden = true; });
