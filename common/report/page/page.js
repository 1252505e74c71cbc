// Opens a cell, compares two methods, sorts and filters tables, follows the reader. All text goes in as text, never as HTML.
(() => {
  const root = document.documentElement;
  root.classList.add("scripted");

  // ---- building elements
  const SVG = "http://www.w3.org/2000/svg";
  const make = (namespace) => (tag, attributes = {}, ...children) => {
    const element = namespace ? document.createElementNS(namespace, tag) : document.createElement(tag);
    for (const [name, value] of Object.entries(attributes)) element.setAttribute(name, value);
    element.append(...children.filter((child) => child !== null && child !== undefined));
    return element;
  };
  const html = make(null);
  const svg = make(SVG);
  const fixed = (value, digits = 2) => (value === null || value === undefined ? "not recorded" : Number(value).toFixed(digits));

  // ---- the runs, inflated when the first cell is opened: a list for every field, so a run is its place in them
  let stored = null;
  async function data() {
    if (!stored) {
      const parsed = JSON.parse(new TextDecoder().decode(await paired.inflate(document.getElementById("run-data").textContent)));
      const fields = Object.entries(parsed.runs);
      parsed.runs = Array.from({ length: parsed.number }, (_, i) => Object.fromEntries(fields.map(([name, values]) => [name, values[i]])));
      stored = parsed;
    }
    return stored;
  }

  // ---- charts
  const WIDTH = 330, HEIGHT = 150, LEFT = 34, BASE = 126;

  function scale(low, high, from, to) {
    return (value) => from + ((value - low) / (high - low || 1)) * (to - from);
  }

  function tidy(low, high) {
    const step = 10 ** Math.floor(Math.log10(high - low || 1)) / 2;
    return [Math.floor(low / step) * step, Math.ceil(high / step) * step];
  }

  function axes(low, high, first, last, unit) {
    const y = scale(low, high, BASE, 8), parts = [];
    for (const value of [low, (low + high) / 2, high]) {
      parts.push(svg("line", { class: "axis", x1: LEFT, x2: WIDTH, y1: y(value), y2: y(value) }));
      parts.push(svg("text", { x: LEFT - 4, y: y(value) + 3, "text-anchor": "end" }, String(+value.toFixed(2))));
    }
    parts.push(svg("text", { x: LEFT, y: HEIGHT - 8 }, `${unit} ${first}`));
    parts.push(svg("text", { x: WIDTH, y: HEIGHT - 8, "text-anchor": "end" }, String(last)));
    return parts;
  }

  function chart(title, description, parts) {
    const drawing = svg("svg", { viewBox: `0 0 ${WIDTH} ${HEIGHT}`, role: "img", "aria-label": `${title}. ${description}` }, ...parts);
    return html("figure", { class: "chart" }, html("figcaption", {}, title), drawing);
  }

  function lines(title, runs, series) {
    const all = runs.flatMap(series).filter((value) => value !== null);
    if (!all.length) return html("p", { class: "soft" }, `${title}: not recorded.`);
    const [low, high] = tidy(Math.min(...all), Math.max(...all));
    const last = Math.max(...runs.map((run) => run.epochs));
    const x = scale(1, last, LEFT, WIDTH), y = scale(low, high, BASE, 8);
    const paths = runs.map((run, i) => {
      const values = series(run), step = (run.epochs - 1) / Math.max(1, values.length - 1);
      let pen = "M";
      const path = values.map((value, k) => {
        if (value === null) { pen = "M"; return ""; }
        const point = `${pen}${x(1 + k * step).toFixed(1)} ${y(value).toFixed(1)}`;
        pen = "L";
        return point;
      }).join("");
      return svg("path", { class: `run${i % 5}`, d: path });
    });
    return chart(title, `From ${fixed(all[0])} to ${fixed(all.at(-1))}.`, [...axes(low, high, 1, last, "epoch"), ...paths]);
  }

  function bars(runs) {
    const done = runs.filter((run) => run.classes.length);
    if (!done.length) return html("p", { class: "soft" }, "Accuracy per class: no run finished.");
    const each = done.map((run) => run.classes);
    const means = each[0].map((_, k) => each.reduce((sum, one) => sum + one[k], 0) / each.length);
    const x = scale(0, means.length, LEFT, WIDTH), y = scale(0, 100, BASE, 8), wide = (WIDTH - LEFT) / means.length;
    const images = stored.counts[done[0].counts];
    const marks = means.map((mean, k) => svg("rect", { class: "mark", x: x(k) + wide * 0.1, width: wide * 0.8, y: y(mean), height: BASE - y(mean) },
      svg("title", {}, `class ${k}: ${fixed(mean)} %, ${images[k]} training images`)));
    const words = `class 0 has ${images[0]} training images, class ${means.length - 1} has ${images[means.length - 1]}`;
    return chart(`Accuracy per class in percent; ${words}`, means.map((mean, k) => `class ${k}: ${fixed(mean, 1)}`).join(", "),
      [...axes(0, 100, 0, means.length - 1, "class"), ...marks]);
  }

  // ---- the facts of the runs of a cell
  function facts(runs) {
    const { places } = stored;
    const ended = (run) => (run.status === "done" ? "finished" : `diverged${run.ended === null ? "" : ` in epoch ${run.ended + 1}`}`);
    const rows = [
      ["run", ended], ["accuracy, last epoch", (run) => fixed(run.last)],
      ["accuracy, best test epoch", (run) => (run.best === null ? "not recorded" : `${fixed(run.best)} (epoch ${run.epoch + 1})`)],
      ["many / medium / few", (run) => run.groups.map((value) => (value === null ? "none" : fixed(value))).join(" / ")],
      ["expected calibration error", (run) => fixed(run.ece)],
      ["device", (run) => places[run.place].device ?? "not recorded"],
      ["precision, torch", (run) => `${places[run.place].precision}, ${places[run.place].torch}`],
      ["device-minutes, its share of the pack", (run) => `${run.seconds === null ? "not recorded" : fixed(run.seconds / 60, 1)} (pack of ${run.side ?? "?"})`],
      ["commit", (run) => run.commit ?? "not recorded"], ["finished on", (run) => run.finished ?? "not recorded"],
      ["key of the record", (run) => run.key],
    ];
    const head = html("tr", {}, html("td", {}), ...runs.map((run) => html("th", { scope: "col" }, `seed ${run.seed}`)));
    const body = rows.map(([name, of]) => html("tr", {}, html("th", { scope: "row" }, name),
      ...runs.map((run) => html("td", name.startsWith("key") ? { class: "key" } : {}, of(run)))));
    const table = html("table", {}, html("thead", {}, head), html("tbody", {}, ...body));
    return html("div", { class: "scroll", tabindex: "0", role: "region", "aria-label": "Facts of each run" }, table);
  }

  function command(way, runs) {
    if (!way.command) return [html("p", {}, "No paper here plans this run any more, so there is no command that makes it again.")];
    const seeds = runs.length ? 1 + Math.max(...runs.map((run) => run.seed)) : 3;
    const again = runs.length && !way.command.includes("torchrun") ? " --retrain" : "";  // which trains no run twice
    const text = html("pre", {}, way.command + seeds + again);
    const copy = html("button", { type: "button", class: "plain" }, "Copy");
    copy.addEventListener("click", async () => {
      try { await navigator.clipboard.writeText(text.textContent); copy.textContent = "Copied"; }
      catch { getSelection().selectAllChildren(text); copy.textContent = "Selected"; }
    });
    return [text, copy];
  }

  function spec({ column, protocol, method }) {
    return html("details", {}, html("summary", {}, "Spec, all that decides the numbers beside the seed"), html("pre", {}, JSON.stringify({ column, protocol, method }, null, 2)));
  }

  // ---- where a cell comes from; files are named from the root of the repository, whose folder report/ holds this page
  const file = (path, line) => html("a", { href: `../${path}` }, line ? `${path}, line ${line}` : path);
  const each = (parts) => parts.flatMap((part) => [part, html("br")]).slice(0, -1);

  function sources(button, way, runs) {
    const place = button.closest("td, th")?.id, table = button.closest("section[data-csv]"), paper = button.closest("section[data-printed]");
    const answers = [...new Set(runs.map((run) => run.answers).filter(Boolean))];
    const rows = [
      ["address", place ? [html("a", { href: `#${place}` }, `#${place}`)] : []],
      ["printed number", button.dataset.line ? [file(paper.dataset.printed, button.dataset.line)] : []],
      ["equations", (way?.equations ?? []).flatMap(([use, name, path, line]) => [html("span", {}, file(path, line), ` ${name} (${use})`)])],
      ["records", runs.map((run) => (run.file ? file(run.file) : html("span", {}, `${run.key}, whose file is not here`)))],
      ["predictions", answers.map((path) => file(path))],
      ["all cells of the table", table ? [html("span", {}, file(table.dataset.csv), " (make tables writes it)")] : []],
    ].filter(([, parts]) => parts.length);
    return html("dl", { class: "outcome sources" }, ...rows.flatMap(([name, parts]) => [html("dt", {}, name), html("dd", {}, ...each(parts))]));
  }

  async function openCell(button) {
    const { ways, runs: all } = await data();
    const dialog = document.getElementById("opened"), body = document.getElementById("opened-body");
    const runs = button.dataset.runs ? button.dataset.runs.split(",").map((place) => all[Number(place)]) : [];
    const way = ways[button.dataset.way ?? runs[0]?.way];
    document.getElementById("opened-title").textContent = button.dataset.about;
    const charts = html("div", { class: "charts" }, lines("Test accuracy in percent, a line a seed", runs, (run) => run.test),
      lines("Training loss, a line a seed", runs, (run) => run.loss), bars(runs));
    body.replaceChildren(...[
      button.dataset.note ? html("p", {}, button.dataset.note) : null, ...(runs.length ? [charts, facts(runs)] : []),
      html("h3", {}, "Where it comes from"), sources(button, way, runs),
      ...(way ? [html("h3", {}, runs.length ? "Made again by" : "Made by"), ...command(way, runs), spec(way)] : []),
    ].filter(Boolean));
    dialog.showModal();
    dialog.scrollTop = 0;
  }

  // ---- sorting: a missing value is last either way
  function sortBy(button) {
    const th = button.closest("th"), table = th.closest("table"), place = [...th.parentNode.children].indexOf(th);
    const first = th.dataset.first ?? "ascending";
    const order = th.ariaSort === first ? (first === "ascending" ? "descending" : "ascending") : first;
    for (const other of th.parentNode.children) other.removeAttribute("aria-sort");
    th.setAttribute("aria-sort", order);
    const value = (row) => (row.children[place].dataset.v ?? row.children[place].textContent.trim()).replace(/^–$/, "");
    const sign = order === "ascending" ? 1 : -1, body = table.tBodies[0];
    const compare = (a, b) => {
      const [x, y] = [value(a), value(b)];
      if (x === "" || y === "") return (x === "") - (y === "");
      return sign * (Number.isFinite(+x) && Number.isFinite(+y) ? x - y : x.localeCompare(y));
    };
    body.append(...[...body.rows].sort(compare));
  }

  // ---- filtering a paper's tables and claims by verdict
  function filterVerdicts(select) {
    const section = select.closest("section"), rows = [...section.querySelectorAll("tr[data-words]")];
    for (const row of rows) row.hidden = select.value !== "" && !row.dataset.words.split("|").includes(select.value);
    for (const box of section.querySelectorAll(".scroll:has(tr[data-words])")) box.hidden = !box.querySelector("tr[data-words]:not([hidden])");
    const shown = rows.filter((row) => !row.hidden).length;
    section.querySelector(".tools output").textContent = select.value ? `${count(shown)} of ${count(rows.length)} rows` : "";
  }

  // a cell that an address names is shown, whatever is filtered
  function showTarget() {
    const target = document.getElementById(decodeURIComponent(location.hash.slice(1)));
    if (!target) return;
    document.getElementById("opened").close();
    const select = target.closest("section[data-printed]")?.querySelector("select.verdicts");
    if (select && target.closest("tr[hidden], .scroll[hidden]")) { select.value = ""; filterVerdicts(select); }
    if (target.matches("details")) target.open = true;
    target.scrollIntoView({ block: target.matches("td, th") ? "center" : "start", inline: "center" });
    if (target.matches("td")) target.querySelector("button").focus({ preventScroll: true });
  }

  // ---- the table of contents follows the reader
  const side = document.querySelector(".side");
  const places = [...side.querySelectorAll("a")].map((link) => ({ link, section: document.getElementById(link.hash.slice(1)) }));
  let waiting = false;
  function follow() {
    waiting = false;
    const edge = innerHeight * 0.3;
    const passed = places.filter(({ section }) => section.getBoundingClientRect().top < edge);
    const current = (passed.at(-1) ?? places[0]).link;
    if (current.ariaCurrent === "location") return;
    for (const { link } of places) link.removeAttribute("aria-current");
    current.setAttribute("aria-current", "location");
    const top = current.closest(".side > ul > li"), sheet = side.getBoundingClientRect(), box = top.getBoundingClientRect();
    if (box.left < sheet.left || box.right > sheet.right) side.scrollLeft += box.left - sheet.left - 24;
    const line = current.getBoundingClientRect();
    if (line.top < sheet.top || line.bottom > sheet.bottom) side.scrollTop += line.top - sheet.top - 80;
  }
  addEventListener("scroll", () => { if (!waiting) { waiting = true; requestAnimationFrame(follow); } }, { passive: true });
  follow();

  // ---- filtering the leaderboards by method: what it opens is closed again where nothing of it is wanted any more
  const opened = new Set();
  const count = (number) => String(number).replace(/\B(?=(\d{3})+$)/g, " ");
  function filter() {
    const wanted = document.getElementById("method-filter").value.trim().toLowerCase().split(/\s+/).filter(Boolean);
    let shown = 0, all = 0;
    for (const board of document.querySelectorAll(".board")) {
      let here = 0;
      for (const row of board.querySelectorAll("tbody tr")) {
        row.hidden = !wanted.every((word) => row.dataset.method.toLowerCase().includes(word));
        here += !row.hidden;
        all += 1;
      }
      shown += here;
      board.hidden = here === 0;
      if (wanted.length && here) {
        if (!board.open) opened.add(board);
        board.open = true;
      } else if (opened.delete(board)) {
        board.open = false;
      }
    }
    document.getElementById("filter-none").hidden = shown > 0;
    document.getElementById("filter-count").textContent = `${count(shown)} of ${count(all)} rows`;
  }

  // ---- where two methods differ
  const SHOWN = 50;
  const pick = (name) => document.getElementById(`pair-${name}`);
  const pairs = JSON.parse(document.getElementById("pair-data").textContent);
  const inflated = new Map();
  const p = (value) => (value < 0.001 ? value.toExponential(1) : value.toPrecision(2));
  const points = (value) => `${value < 0 ? "-" : "+"}${Math.abs(value).toFixed(2)}`;

  function fillColumns() {
    pick("column").append(...pairs.columns.map((column, i) => html("option", { value: i }, column.name)));
    pick("left").textContent = `The predictions of ${count(pairs.left_out)} more runs found no room on this page.`;
    pick("left").hidden = pairs.left_out === 0;
    if (pairs.columns.length) fillMethods();
  }

  function fillMethods() {
    const { methods } = pairs.columns[pick("column").value];
    const options = methods.flatMap(([name, seeds], i) => [
      ...(seeds.length > 1 ? [html("option", { value: i }, `${name} (${seeds.length} seeds)`)] : []),
      ...seeds.map((seed, k) => html("option", { value: `${i},${k}` }, `${name}, seed ${seed}`))]);
    for (const name of ["first", "second"]) {
      pick(name).replaceChildren(html("option", { value: "", disabled: "", selected: "" }, "a method, or one of its runs"),
        ...options.map((option) => option.cloneNode(true)));
    }
    pick("result").replaceChildren();
  }

  function selection(name) {
    const [method, run] = pick(name).value.split(",").map(Number);
    return { method, run: run ?? null };
  }

  async function comparePair() {
    const place = pick("column").value, column = pairs.columns[place];
    if (!pick("first").value || !pick("second").value) return;
    const meeting = paired.meeting(column, selection("first"), selection("second"));
    if (!meeting.length) { pick("result").replaceChildren(html("p", {}, "These two have no seed in common.")); return; }
    const wanted = [place, pick("first").value, pick("second").value].join();
    if (!inflated.has(place)) inflated.set(place, await paired.inflate(column.bits));
    if (wanted === [pick("column").value, pick("first").value, pick("second").value].join()) // nothing else was chosen meanwhile
      pick("result").replaceChildren(...pairParts(column, paired.compare(column, inflated.get(place), meeting)));
  }

  function pairParts(column, outcome) {
    const all = outcome.seeds * outcome.images, share = (number, of = all) => fixed((100 * number) / of);
    const words = outcome.test ? [
      ["difference, first − second", `${points((100 * (outcome.first - outcome.second)) / all)} points`],
      ["95 % interval", `${points(outcome.test.low)} to ${points(outcome.test.high)}`], ["p (two-sided)", p(outcome.test.either)],
    ] : [["difference, first − second", `${points((100 * (outcome.first - outcome.second)) / all)} points; with one seed there is no interval and no p`]];
    const facts = [["accuracy, first", `${share(outcome.both + outcome.first)} %`], ["accuracy, second", `${share(outcome.both + outcome.second)} %`], ...words,
      ["compared", `${count(outcome.images)} images, ${outcome.seeds} ${outcome.seeds === 1 ? "run" : "seeds"} of each`],
      ...[["only the first right", "first"], ["only the second right", "second"], ["both right", "both"], ["neither right", "neither"]]
        .map(([name, field]) => [name, `${count(outcome[field])} (${share(outcome[field])} %)`])];
    const list = html("dl", { class: "outcome" }, ...facts.flatMap(([name, value]) => [html("dt", {}, name), html("dd", {}, value)]));
    return [list, html("h4", {}, "By class"), classTable(column, outcome), html("h4", {}, "Images on which they differ"), imageList(outcome)];
  }

  function classTable(column, outcome) {
    const names = ["class", "training images", "first", "second", "difference", "only the first right", "only the second right"];
    const head = html("tr", {}, ...names.map((name) => html("th", { scope: "col", class: "n" }, html("button", { type: "button" }, name))));
    const rows = outcome.classes.map((one) => {
      const all = one.images * outcome.seeds, percent = (number) => (100 * number) / all, gap = percent(one.first - one.second);
      const cells = [column.counts[one.label], fixed(percent(one.both + one.first)), fixed(percent(one.both + one.second)), points(gap), one.first, one.second];
      return html("tr", {}, html("th", { scope: "row", class: "n" }, one.label),
        ...cells.map((text, i) => html("td", i === 3 ? { class: "n", "data-v": gap } : { class: "n" }, text)));
    });
    const table = html("table", { class: "sortable" }, html("thead", {}, head), html("tbody", {}, ...rows));
    return html("div", { class: "scroll", tabindex: "0", role: "region", "aria-label": "Where the two differ, by class" }, table);
  }

  function imageList(outcome) {
    const { differing, seeds } = outcome;
    const which = ({ image, label, ours, theirs }) => `${image} (class ${label}, ${seeds === 1 ? (ours ? "first" : "second") : `${ours} : ${theirs}`})`;
    const words = differing.length > SHOWN ? `${SHOWN} of ${count(differing.length)}` : count(differing.length);
    const means = seeds === 1 ? "which of the two is right" : `how many of ${seeds} runs are right, first : second, the largest differences first`;
    return html("p", { class: "small images" }, `${words}, by their place in the test set, from 0; in brackets the class, and ${means}: `, differing.slice(0, SHOWN).map(which).join(", ") || "none");
  }

  // ---- theme
  const theme = document.getElementById("theme");
  const isDark = () => (root.dataset.theme ? root.dataset.theme === "dark" : matchMedia("(prefers-color-scheme: dark)").matches);
  const nameTheme = () => { theme.textContent = isDark() ? "Light" : "Dark"; };
  try { root.dataset.theme = localStorage.getItem("theme") ?? ""; } catch { /* a page from a mail may have no storage */ }
  if (!root.dataset.theme) delete root.dataset.theme;
  nameTheme();
  matchMedia("(prefers-color-scheme: dark)").addEventListener("change", nameTheme);
  theme.addEventListener("click", () => {
    root.dataset.theme = isDark() ? "light" : "dark";
    try { localStorage.setItem("theme", root.dataset.theme); } catch { /* as above */ }
    nameTheme();
  });

  // ---- events
  document.addEventListener("click", (event) => {
    const button = event.target.closest("button");
    if (!button) { if (event.target.id === "opened") event.target.close(); return; }
    if (button.dataset.about) openCell(button);
    else if (button.closest("thead th")) sortBy(button);
  });
  document.getElementById("close").addEventListener("click", () => document.getElementById("opened").close());
  document.getElementById("method-filter")?.addEventListener("input", filter);
  for (const select of document.querySelectorAll("select.verdicts")) select.addEventListener("change", () => filterVerdicts(select));
  addEventListener("hashchange", showTarget);
  addEventListener("load", () => requestAnimationFrame(showTarget)); // the browser's own way to the target, which takes the focus, comes first
  if (pick("column")) {
    fillColumns();
    pick("column").addEventListener("change", fillMethods);
    for (const name of ["first", "second"]) pick(name).addEventListener("change", comparePair);
  }
})();
