"use strict";
// What a chart's points say, by mouse, touch and keyboard; without scripts the page only lacks this.
(() => {
  const tip = document.getElementById("tip");
  const points = (chart) => [...chart.querySelectorAll(".pt")];

  function show(point) {
    tip.textContent = point.getAttribute("aria-label");
    tip.hidden = false;
    const at = point.getBoundingClientRect(), size = tip.getBoundingClientRect(), gap = 8;
    const left = at.left + at.width / 2 - size.width / 2;
    const above = at.top - size.height - gap;
    tip.style.left = Math.max(gap, Math.min(left, document.documentElement.clientWidth - size.width - gap)) + "px";
    tip.style.top = (above >= gap ? above : at.bottom + gap) + "px";
  }
  const hide = () => { tip.hidden = true; };
  const pointOf = (event) => event.target.closest && event.target.closest(".pt");

  // The point under the pointer speaks, else the one that has the focus: scrolling moves the page under a resting
  // pointer. One that was silenced by Escape stays silent until it is left.
  let hovered = null, silenced = null;
  const speaking = () => hovered || document.activeElement.closest(".pt");
  function update(event) {
    if (event.type === "pointerover") hovered = pointOf(event);
    const point = speaking();
    if (point !== silenced) silenced = null;
    if (point && !silenced) show(point); else hide();
  }
  for (const kind of ["pointerover", "focusin", "scroll"]) {
    document.addEventListener(kind, update, { passive: true, capture: true });
  }

  // A chart is one stop of the tab key; arrows go from point to point within it.
  for (const chart of document.querySelectorAll(".chart")) {
    const first = chart.querySelector(".pt");
    if (first) first.setAttribute("tabindex", "0");
  }
  document.addEventListener("keydown", (event) => {
    if (event.key === "Escape") { silenced = speaking(); hide(); return; }
    const point = pointOf(event);
    if (!point) return;
    hovered = null;
    const all = points(point.closest(".chart")), now = all.indexOf(point);
    const next = { ArrowRight: now + 1, ArrowDown: now + 1, ArrowLeft: now - 1, ArrowUp: now - 1, Home: 0, End: all.length - 1 }[event.key];
    if (next === undefined) return;
    event.preventDefault();
    const target = all[Math.max(0, Math.min(next, all.length - 1))];
    point.setAttribute("tabindex", "-1");
    target.setAttribute("tabindex", "0");
    target.focus();
  });

  // A link to a folded section opens it.
  function unfold() {
    const target = location.hash && document.getElementById(decodeURIComponent(location.hash.slice(1)));
    if (target && target.tagName === "DETAILS") target.open = true;
  }
  addEventListener("hashchange", unfold);
  document.addEventListener("click", (event) => {
    const link = event.target.closest && event.target.closest('a[href^="#"]');
    if (link && link.hash === location.hash) unfold();
  });
  unfold();
})();
