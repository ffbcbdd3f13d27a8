"use strict";
(function () {
  const sources = document.querySelectorAll("script[data-figure]");
  const names = ["ink", "muted", "line", "paper"];

  function themed(text) {
    const style = getComputedStyle(document.documentElement);
    for (const name of names) {
      text = text.replaceAll('"@' + name + '"', '"' + style.getPropertyValue("--" + name).trim() + '"');
    }
    return JSON.parse(text);
  }

  function draw() {
    for (const source of sources) {
      const target = document.getElementById(source.dataset.figure);
      const figure = themed(source.textContent);
      Plotly.react(target, {
        ...figure,
        config: { responsive: true, displayModeBar: false },
      });
    }
  }

  draw();
  window.matchMedia("(prefers-color-scheme: dark)").addEventListener("change", draw);
})();
