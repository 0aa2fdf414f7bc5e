"use strict";
// The table of all images: search, filters, sorting, and 50 rows at a time.
const ROWS = 50;
const find = (selector) => document.querySelector(selector);
const data = JSON.parse(find("#data").textContent);
const form = find("form");
const fields = form.elements;
const texts = data.names.map((name, i) => [name, data.captions[i], ...data.references[i]].join("\n").toLowerCase());
const collator = new Intl.Collator(undefined, { numeric: true });
const columns = { name: data.names, caption: data.captions };
let sort = { key: null, descending: false };
let order = data.names.map((_, i) => i);
let shown = order;
let first = 0;

function addOption(select, value, text) {
  select.append(new Option(text, value));
}

function sortRows() {
  order = data.names.map((_, i) => i);
  if (sort.key !== null) {
    const values = sort.key === "score" ? data.scores[fields.metric.value] : columns[sort.key];
    const compare = sort.key === "score" ? (a, b) => a - b : collator.compare;
    const sign = sort.descending ? -1 : 1;
    order.sort((i, j) => sign * compare(values[i], values[j]));
  }
  for (const head of document.querySelectorAll("th[data-key]")) {
    const direction = sort.descending ? "descending" : "ascending";
    head.setAttribute("aria-sort", head.dataset.key === sort.key ? direction : "none");
  }
  filterRows();
}

function filterRows() {
  const words = fields.search.value.toLowerCase().split(/\s+/);
  const domain = fields.domain.value;
  const scores = data.scores[fields.metric.value];
  const low = fields.low.value === "" ? -Infinity : Number(fields.low.value);
  const high = fields.high.value === "" ? Infinity : Number(fields.high.value);
  shown = order.filter(
    (i) =>
      (domain === "" || data.domains[i] === domain) &&
      (!scores || (scores[i] >= low && scores[i] <= high)) &&
      words.every((word) => texts[i].includes(word)),
  );
  first = 0;
  showRows();
}

function showRows() {
  find(".images tbody").replaceChildren(...shown.slice(first, first + ROWS).map(makeRow));
  const last = Math.min(first + ROWS, shown.length);
  const range = shown.length ? `${(first + 1).toLocaleString("en")} to ${last.toLocaleString("en")} of ` : "";
  find("#status").textContent = `${range}${shown.length.toLocaleString("en")} images`;
  find("#previous").disabled = first === 0;
  find("#next").disabled = last === shown.length;
}

function makeRow(i) {
  const row = find("#row").content.cloneNode(true);
  const [picture, name, , score] = row.querySelectorAll("td");
  if (data.pictures[i]) {
    const image = new Image();
    image.src = data.pictures[i];
    image.alt = "";
    picture.append(image);
  }
  name.textContent = data.names[i];
  row.querySelector(".caption").textContent = data.captions[i] || "(empty)";
  for (const text of data.references[i]) {
    const item = document.createElement("li");
    item.textContent = text;
    row.querySelector(".references").append(item);
  }
  if (data.metrics.length) {
    score.textContent = data.scores[fields.metric.value][i].toFixed(1);
    score.title = data.metrics.map(([key, title]) => `${title} ${data.scores[key][i].toFixed(1)}`).join("\n");
  }
  return row;
}

function chooseMetric() {
  find("th[data-key=score] button").textContent = fields.metric.selectedOptions[0]?.text ?? "";
  sortRows();
}

function turnPage(rows) {
  first += rows;
  showRows();
  find("#all").scrollIntoView();
}

for (const domain of new Set(data.domains)) if (domain !== null) addOption(fields.domain, domain, domain);
for (const [key, title] of data.metrics) addOption(fields.metric, key, title);
for (const option of fields.metric.options) option.defaultSelected = option.value === "cider";
find(".images").classList.toggle("bare", data.pictures.length === 0);
find(".domain").hidden = fields.domain.options.length === 1;
find(".images").classList.toggle("unscored", data.metrics.length === 0);
for (const label of document.querySelectorAll(".scored")) label.hidden = data.metrics.length === 0;

form.addEventListener("submit", (event) => event.preventDefault());
form.addEventListener("input", (event) => (event.target === fields.metric ? chooseMetric() : filterRows()));
form.addEventListener("reset", () => {
  sort = { key: null, descending: false };
  setTimeout(chooseMetric); // the fields change after the event
});
find("#previous").addEventListener("click", () => turnPage(-ROWS));
find("#next").addEventListener("click", () => turnPage(ROWS));
for (const head of document.querySelectorAll("th[data-key]")) {
  head.querySelector("button").addEventListener("click", () => {
    const again = sort.key === head.dataset.key;
    sort = { key: head.dataset.key, descending: again ? !sort.descending : head.dataset.key === "score" };
    sortRows();
  });
}
find("#chart")?.addEventListener("change", (event) => {
  for (const chart of document.querySelectorAll(".distribution")) chart.hidden = chart.dataset.metric !== event.target.value;
});
for (const bar of document.querySelectorAll(".bar")) {
  bar.addEventListener("click", () => {
    fields.metric.value = bar.closest(".distribution").dataset.metric;
    fields.low.value = bar.dataset.low;
    fields.high.value = bar.dataset.high;
    sort = { key: "score", descending: true };
    chooseMetric();
    find("#all").scrollIntoView();
  });
}
chooseMetric();
