// Sorting and filtering; everything else on the page stands without it.
"use strict";
const number = (text) => { const found = text.replace("<", "").match(/[+\-−]?\d+(\.\d+)?(e[+-]?\d+)?/i);
  return found ? parseFloat(found[0].replace("−", "-")) : NaN; };

for (const table of document.querySelectorAll("table.sortable")) {
  const heads = [...table.tHead.rows[0].cells];
  heads.forEach((head, column) => {
    head.querySelector("button").addEventListener("click", () => {
      const down = head.getAttribute("aria-sort") === "ascending";
      const rows = [...table.tBodies[0].rows];
      const key = (row) => row.cells[column].textContent.trim();
      const filled = rows.filter((row) => key(row) !== "");
      const numeric = column > 0 && filled.every((row) => !Number.isNaN(number(key(row))));
      filled.sort((a, b) => (numeric ? number(key(a)) - number(key(b)) : key(a).localeCompare(key(b))) * (down ? -1 : 1));
      table.tBodies[0].append(...filled, ...rows.filter((row) => key(row) === ""));  // what has no value comes last
      heads.forEach((other) => other.removeAttribute("aria-sort"));
      head.setAttribute("aria-sort", down ? "descending" : "ascending");
    });
  });
}

const filters = [...document.querySelectorAll(".filters select")];
const examples = [...document.querySelectorAll(".example")];
const show = () => {
  for (const example of examples) {
    const wrong = JSON.parse(example.dataset.wrong);
    example.hidden = !filters.every((one) => one.value === "" || (one.name === "wrong" ? wrong.includes(one.value)
      : example.dataset[one.name] === one.value));
  }
  const left = examples.filter((one) => !one.hidden).length;
  document.getElementById("shown").textContent = `${left} of ${examples.length} shown`;
};
filters.forEach((one) => one.addEventListener("change", show));
