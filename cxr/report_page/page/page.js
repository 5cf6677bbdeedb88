// Shows the document of a run. All its text is inserted as text nodes: a key or a label may hold anything.
"use strict";
(async () => {
  const report = await unpack(document.getElementById("data"));
  const { rows } = report;
  const byId = (id) => document.getElementById(id);
  const MILLION = 1e6;
  const count = new Intl.NumberFormat("en-US").format;
  const FAILED = -1;
  const size = rows.keys.length;

  // The label that is shown. `show` sets these, and draws what depends on them.

  let part, label, negative, evaluation;
  let scores; // millionths; -1 if there is none
  let truth; // 1, 0; -1 if there is no reference label; null if there are none at all
  let all, positives, negatives; // their sorted scores

  // What depends on the threshold: the number of images at or above it, from sorted scores.

  let threshold;
  const atLeast = (value) => Math.ceil(value * MILLION - 1e-6); // the least score, in millionths, that reaches it
  const sorted = (keep) => scores.filter((score, i) => score !== FAILED && keep(i)).sort();

  function reaching(values, least) {
    let low = 0, high = values.length;
    while (low < high) {
      const middle = (low + high) >> 1;
      if (values[middle] < least) low = middle + 1; else high = middle;
    }
    return values.length - low;
  }

  function confusion(value) {
    const tp = reaching(positives, atLeast(value)), fp = reaching(negatives, atLeast(value));
    const fn = positives.length - tp, tn = negatives.length - fp;
    const rate = (part, whole) => (whole ? part / whole : null);
    return {
      tp, fp, fn, tn,
      sensitivity: rate(tp, tp + fn), specificity: rate(tn, tn + fp),
      ppv: rate(tp, tp + fp), npv: rate(tn, tn + fn), accuracy: rate(tp + tn, tp + fp + fn + tn),
    };
  }

  const brief = (text) => (text.length > 24 ? `${text.slice(0, 23)}…` : text); // in a chart, whose text does not wrap
  const share = (value) => (value === null ? "–" : value.toFixed(3));
  const shown = (value) => String(+value.toFixed(6));
  const scoreText = (score) => (score === FAILED ? "" : (score / MILLION).toFixed(6));

  // Head

  byId("run").textContent = report.run;
  byId("subtitle").textContent = report.subtitle;
  byId("written").textContent = `Written ${report.written}.`;
  const several = report.labels.length > 1;
  const sections = [...document.querySelectorAll("section")];
  document.querySelector("nav").append(...sections.map((section) => el("a", { href: `#${section.id}` }, section.dataset.title)));
  function drawHead() {
    byId("tiles").replaceChildren(...part.tiles.map((tile) => el("div", {},
      el("dt", {}, tile.name), el("dd", { class: "value" }, tile.value), el("dd", { class: "note" }, tile.note))));
    byId("notices").replaceChildren(...part.notices.map((notice) => el("p", { class: `notice ${notice.kind}` }, notice.text)));
  }

  // Charts, drawn for the available width in the colours of the page

  const UNIT = { domain: [0, 1], ticks: 5, tickFormat: (value) => String(+value.toFixed(1)) };
  const DASHED = { stroke: "var(--neutral)", strokeDasharray: "2 4" };
  const HEIGHT = 260, TOP = 28, BOTTOM = 40, BINS = 50;
  const PAPER = { histogram: 398, curve: 218, group: 218 }; // widths of the columns on A4, in CSS pixels
  const charts = [];

  function chart(parent, name, paper, options, marker) {
    const box = { parent, paper, draw(width) {
      const svg = Plot.plot({ width, marginTop: TOP, marginLeft: 48, marginRight: 16, marginBottom: BOTTOM, ...options(width) });
      svg.setAttribute("role", "img");
      svg.setAttribute("aria-label", name);
      for (const group of svg.querySelectorAll("g[aria-label]")) group.removeAttribute("aria-label"); // a label needs a role
      parent.replaceChildren(svg);
      box.move = marker?.(svg, (axis, value) => svg.scale(axis).apply(value));
      box.move?.();
    } };
    charts.push(box);
  }

  function drawCharts() {
    for (const box of charts) {
      const width = Math.round(box.parent.clientWidth);
      if (width > 0 && width !== box.width) box.draw(box.width = width);
    }
  }

  function verticalLine(svg, at) {
    const line = svg.appendChild(svgEl("line", { class: "threshold-line", y1: TOP, y2: HEIGHT - BOTTOM }));
    return () => { for (const end of ["x1", "x2"]) line.setAttribute(end, at("x", threshold)); };
  }

  function dot(place) {
    return (svg, at) => {
      const circle = svg.appendChild(svgEl("circle", { class: "threshold-dot", r: 6 }));
      return () => {
        const [x, y] = place(confusion(threshold));
        circle.style.display = x === null || y === null ? "none" : "";
        circle.setAttribute("cx", at("x", x ?? 0));
        circle.setAttribute("cy", at("y", y ?? 0));
      };
    };
  }

  // Scores

  function drawHistogram() {
    const classes = truth
      ? [[`reference ${negative}`, "--negative", 0], [`reference ${label}`, "--positive", 1], ["no reference label", "--neutral", -1]]
        .filter(([, , value]) => value !== -1 || all.length > positives.length + negatives.length)
      : [["scored images", "--negative", null]];
    const bars = classes.flatMap(([name, tone, value]) => {
      const bins = new Array(BINS).fill(0);
      scores.forEach((score, i) => {
        if (score !== FAILED && (value === null || truth[i] === value)) bins[Math.min(BINS - 1, Math.floor(score * BINS / MILLION))] += 1;
      });
      return bins.map((n, bin) => ({ x1: bin / BINS, x2: (bin + 1) / BINS, n, name, tone: `var(${tone})` }));
    }).filter((bar) => bar.n);
    byId("legend").replaceChildren();
    byId("histogram").replaceChildren();
    if (all.length) {
      chart(byId("histogram"), `Distribution of ${count(all.length)} scores from 0 to 1, with the threshold`, PAPER.histogram, (width) => ({
        height: HEIGHT,
        x: { ...UNIT, label: `score of ${brief(label)}`, ticks: width < 320 ? 5 : 10 },
        y: { label: "images", grid: true, ticks: 4, tickFormat: (n) => (Number.isInteger(n) ? count(n) : "") },
        marks: [
          Plot.rectY(bars, { x1: "x1", x2: "x2", y: "n", fill: "tone", order: null,
            title: (bar) => `${count(bar.n)} ${bar.name}\n${bar.x1.toFixed(2)} to ${bar.x2.toFixed(2)}`, tip: { fill: "var(--card)" } }),
          Plot.ruleY([0]),
        ],
      }), verticalLine);
      byId("legend").append(el("span", { class: "legend" }, ...classes.map(([name, tone]) =>
        el("span", {}, el("span", { class: "swatch", tone: `var(${tone})` }), name)), el("span", {}, "┆ threshold")));
    } else {
      byId("histogram").append(el("p", { class: "empty" }, "No image has a score yet."));
    }
    byId("threshold-source").textContent = part.threshold === null
      ? "The run's threshold is not known: the run does not record it, and its scores do not tell."
      : `The run's threshold is ${shown(part.threshold)}: ${part.threshold_source}.`;
  }

  const slider = byId("threshold"), number = byId("threshold-number");

  function atThreshold() {
    const parts = [el("h3", {}, `At threshold ${shown(threshold)}`)];
    if (truth) {
      const found = confusion(threshold);
      const cell = (kind, name, n, of) => el("td", { class: kind, id: `cell-${name}`, share: of ? n / of : 0 },
        el("span", { class: "count" }, count(n)), el("small", {}, `${name.toUpperCase()} · ${of ? (100 * n / of).toFixed(0) : "–"}%`));
      parts.push(
        el("table", { class: "confusion" },
          el("caption", { class: "unseen" }, "Confusion matrix; shares are of a row"),
          el("thead", {}, el("tr", {}, el("td", { class: "unseen" }), el("th", { scope: "col" }, `called ${label}`), el("th", { scope: "col" }, `called ${negative}`))),
          el("tbody", {},
            el("tr", {}, el("th", { scope: "row" }, `reference ${label}`), cell("right", "tp", found.tp, positives.length), cell("wrong", "fn", found.fn, positives.length)),
            el("tr", {}, el("th", { scope: "row" }, `reference ${negative}`), cell("wrong", "fp", found.fp, negatives.length), cell("right", "tn", found.tn, negatives.length)))),
        el("dl", { class: "rates" }, ...[["Sensitivity", "sensitivity"], ["Specificity", "specificity"], ["PPV", "ppv"], ["NPV", "npv"], ["Accuracy", "accuracy"]]
          .map(([name, key]) => el("div", {}, el("dt", {}, name), el("dd", { id: `rate-${key}` }, share(found[key]))))),
        el("p", { class: "muted" }, `PPV and NPV are for a prevalence of ${share(evaluation.prevalence)}, as in these images.`));
    } else {
      const called = reaching(all, atLeast(threshold));
      parts.push(
        el("dl", { class: "rates" },
          ...[[`Called ${label}`, called, "cell-called"], [`Called ${negative}`, all.length - called, "cell-not-called"]].map(([name, n, id]) =>
            el("div", {}, el("dt", {}, name), el("dd", { id }, count(n)), el("dd", { class: "muted" }, all.length ? `${(100 * n / all.length).toFixed(1)}%` : "–")))),
        el("p", { class: "muted" }, "Move the threshold to see how many images would be called. Only reference labels can show how many of them correctly."));
    }
    byId("at-threshold").replaceChildren(...parts);
  }

  let later;
  function moveTo(value) {
    threshold = value;
    atThreshold();
    for (const box of charts) box.move?.();
    clearTimeout(later);
    later = setTimeout(() => {
      const found = truth && confusion(threshold);
      byId("spoken").textContent = truth
        ? `Threshold ${shown(threshold)}: sensitivity ${share(found.sensitivity)}, specificity ${share(found.specificity)}`
        : `Threshold ${shown(threshold)}: ${count(reaching(all, atLeast(threshold)))} called ${label}`;
      if (byId("truth").value.startsWith("false")) table.draw();
    }, 250);
  }
  slider.addEventListener("input", () => { number.value = slider.value; moveTo(+slider.value); });
  number.addEventListener("input", () => {
    if (number.value === "" || !(number.value >= 0 && number.value <= 1)) return;
    slider.value = number.value;
    moveTo(+number.value);
  });
  byId("reset").addEventListener("click", () => { setSliders(part.threshold ?? 0.5); moveTo(part.threshold ?? 0.5); });
  function setSliders(value) { slider.value = value; number.value = shown(value); }

  // Evaluation

  function drawEvaluation() {
    const place = byId("evaluation-body");
    place.replaceChildren();
    if (!evaluation) {
      place.append(el("p", { class: "empty" }, part.not_evaluated ? `${label} cannot be measured: ${part.not_evaluated}.`
        : "This report was made without reference labels. With them it shows ROC, "
          + "precision-recall, calibration, the confusion matrix, groups and the worst mistakes."));
      return;
    }
    const figure = (title, note) => {
      const box = el("div", {});
      return [box, el("figure", { class: "chart" }, el("h3", {}, title), box, el("figcaption", {}, note))];
    };
    const empty = (title, why) => el("div", { class: "chart" }, el("h3", {}, title), el("p", { class: "empty" }, why));
    const square = (width) => Math.min(width, 400);
    const estimate = Object.fromEntries(evaluation.measures.map(([name, value, interval]) => [name, `${value} (${interval})`]));
    const [roc, rocFigure] = figure("ROC", `AUC ${estimate.AUC}. ●: the threshold. Dotted: chance.`);
    const [pr, prFigure] = figure("Precision and recall", `Average precision ${estimate["average precision"]}. ●: the threshold. Dotted: chance.`);
    const [calibration, calibrationFigure] = figure("Calibration", `Slope ${estimate["calibration slope"]}; 1 means well calibrated. Bars: 95% interval. Dotted: perfect.`);
    const one = "Not defined: the labels have only one class.";
    place.append(
      el("p", {}, `${evaluation.on}.`, evaluation.left_out ? ` Left out: ${evaluation.left_out}.` : ""),
      el("div", { class: "charts" },
        evaluation.roc ? rocFigure : empty("ROC", one),
        evaluation.precision_recall ? prFigure : empty("Precision and recall", one),
        evaluation.reliability ? calibrationFigure : empty("Calibration", "Not defined: it is not known that these scores are probabilities.")));
    const curve = (x, y, marks) => (width) => ({
      height: square(width), x: { ...UNIT, label: x }, y: { ...UNIT, label: y, grid: true }, marks });
    if (evaluation.roc) {
      chart(roc, `ROC curve: sensitivity against 1 − specificity, AUC ${estimate.AUC}`, PAPER.curve, curve("1 − specificity", "sensitivity", [
        Plot.line([[0, 0], [1, 1]], DASHED),
        Plot.line(evaluation.roc, { stroke: "var(--negative)", strokeWidth: 2 }),
      ]), dot((found) => [found.specificity === null ? null : 1 - found.specificity, found.sensitivity]));
    }
    if (evaluation.precision_recall) {
      chart(pr, `Precision-recall curve, average precision ${estimate["average precision"]}`, PAPER.curve, curve("recall (sensitivity)", "precision (PPV)", [
        Plot.ruleY([evaluation.prevalence], DASHED),
        Plot.line(evaluation.precision_recall, { stroke: "var(--negative)", strokeWidth: 2, curve: "step-before" }),
      ]), dot((found) => [found.sensitivity, found.ppv]));
    }
    if (evaluation.reliability) {
      const bin = ([score, observed, low, high, images]) => ({ score, observed, low, high, images });
      const bins = evaluation.reliability.map(bin);
      chart(calibration, `Calibration: observed share against mean score in ${bins.length} bins, slope ${estimate["calibration slope"]}`,
        PAPER.curve, curve("mean score", `share ${brief(label)}`, [
          Plot.line([[0, 0], [1, 1]], DASHED),
          Plot.ruleX(bins, { x: "score", y1: "low", y2: "high", stroke: "var(--negative)" }),
          Plot.dot(bins, { x: "score", y: "observed", fill: "var(--negative)", r: 4, tip: { fill: "var(--card)" },
            title: (one) => `${count(one.images)} images\nmean score ${one.score.toFixed(3)}\n${one.observed.toFixed(3)} ${label}` }),
        ]));
    }
    const half = (measures) => el("table", {}, el("caption", { class: "unseen" }, "Measures with 95% intervals"),
      head(["Measure"], ["Value", 1], ["95% interval", 1]),
      el("tbody", {}, ...measures.map(([name, value, interval]) =>
        el("tr", {}, el("th", { scope: "row" }, name), el("td", { class: "number" }, value), el("td", { class: "number" }, interval)))));
    const middle = Math.ceil(evaluation.measures.length / 2);
    place.append(
      el("h3", {}, `All measures, at threshold ${shown(evaluation.threshold)}`),
      el("div", { class: "columns even" }, half(evaluation.measures.slice(0, middle)), half(evaluation.measures.slice(middle))),
      el("p", { class: "muted" }, `Intervals: ${evaluation.intervals}.`));
    if (!evaluation.groups.length) {
      place.append(el("h3", {}, "Groups"), el("p", { class: "empty" }, "This report was made without groups, for example by view or sex."));
    }
    for (const { column, values } of evaluation.groups) {
      const drawn = values.filter((value) => value.auc);
      const box = el("div", {});
      const withPatients = values.some((value) => value.patients);
      const names = ["AUC", "sensitivity", "specificity"];
      place.append(el("h3", {}, `By ${column}`), el("div", { class: "columns group" },
        drawn.length ? el("figure", { class: "chart" }, box, el("figcaption", {}, "AUC and its 95% interval. Dotted: chance."))
          : el("p", { class: "empty" }, "AUC is not defined: within each group, the labels have only one class."),
        scrollable(`Measures by ${column}`, el("table", { class: "groups" }, el("caption", { class: "unseen" }, `Measures by ${column}`),
          head([column], ["images", 1], ...(withPatients ? [["patients", 1]] : []), [label, 1], ...names.map((name) => [name, 1])),
          el("tbody", {}, ...values.map((value) => el("tr", {}, el("th", { scope: "row" }, value.value),
            ...[value.images, ...(withPatients ? [value.patients] : []), value.positives].map((text) => el("td", { class: "number" }, text)),
            ...value.measures.map(([text, interval]) => el("td", { class: "number" }, text, el("small", { class: "muted" }, interval))))))))));
      if (drawn.length) {
        chart(box, `AUC by ${column}, with intervals`, PAPER.group, () => ({
          height: 44 + 30 * drawn.length, marginTop: 4, marginLeft: 84, marginBottom: 36,
          x: { ...UNIT, label: "AUC", grid: true }, y: { label: null, domain: drawn.map((value) => value.value), tickFormat: brief },
          marks: [
            Plot.ruleX([0.5], DASHED),
            Plot.ruleY(drawn, { y: "value", x1: (value) => value.auc[1] ?? value.auc[0], x2: (value) => value.auc[2] ?? value.auc[0], stroke: "var(--negative)", strokeWidth: 2 }),
            Plot.dot(drawn, { y: "value", x: (value) => value.auc[0], fill: "var(--negative)", r: 4.5 }),
          ],
        }));
      }
    }
  }

  // Failures and warnings

  function codes(parent, found, of, none) {
    if (!found.length) return parent.append(el("p", { class: "empty" }, none));
    return parent.append(el("table", { class: "bars" }, head(["Code"], ["Images", 1], ["Share"]),
      el("tbody", {}, ...found.map(({ code, meaning, images }) => el("tr", {},
        el("th", { scope: "row" }, el("code", {}, code), el("span", { class: "meaning" }, meaning)),
        el("td", { class: "number" }, count(images)),
        el("td", {}, el("span", { class: "meter", share: images / found[0].images }), el("small", { class: "muted" }, `${(100 * images / of).toFixed(images / of < 0.01 ? 2 : 1)}%`)))))));
  }
  const failed = report.failures.reduce((sum, { images }) => sum + images, 0);
  codes(byId("failures-body"), report.failures, size, "No image failed.");
  codes(byId("warnings-body"), report.warnings, size - failed, "No image has a warning.");

  // Gallery

  const dialog = byId("dialog");
  const base = (key) => key.split("/").pop() || key;
  const calledText = (row) => (part.positive[row] ? label : negative);
  const tone = (positive) => `badge ${positive ? "is-positive" : "is-negative"}`;
  byId("close").addEventListener("click", () => dialog.close());
  dialog.addEventListener("click", (event) => { if (event.target === dialog) dialog.close(); });

  let opacity = 0.4;
  function fader() {
    const slider = el("input", { type: "range", class: "fade", min: 0, max: 1, step: 0.05, value: opacity });
    slider.addEventListener("input", () => {
      opacity = slider.value;
      document.documentElement.style.setProperty("--map", opacity);
      for (const other of document.querySelectorAll("input.fade")) other.value = opacity;
    });
    return el("label", { class: "fader" }, "Class activation map", slider);
  }

  const mapOf = (picture) => (picture?.maps && Object.hasOwn(picture.maps, label) ? picture.maps[label] : null);
  const layers = (picture, alt) => [el("img", { src: picture.image, alt, decoding: "async" }),
    ...(mapOf(picture) ? [el("img", { src: mapOf(picture), alt: "", class: "map", decoding: "async" })] : [])];
  const truthBadge = (row) => (truth && truth[row] !== -1
    ? [el("span", { class: "truth" }, el("span", { class: tone(truth[row]) }, truth[row] ? label : negative))] : []);

  function thumb(row) {
    const picture = report.pictures?.[row];
    const text = `score ${scoreText(scores[row])}, called ${calledText(row)}${truth && truth[row] !== -1 ? `, reference ${truth[row] ? label : negative}` : ""}`;
    const parts = [];
    if (picture?.image) {
      const button = el("button", { type: "button", class: "picture", "aria-label": `Enlarge X-ray, ${text}` }, ...layers(picture, ""));
      button.addEventListener("click", () => {
        byId("dialog-title").textContent = rows.keys[row];
        byId("dialog-body").replaceChildren(el("div", { class: "picture" }, ...layers(picture, `X-ray, ${text}`)), el("p", {}, text), ...warningText(row),
          ...(mapOf(picture) ? [fader()] : []));
        dialog.showModal();
      });
      parts.push(button);
    } else if (picture) {
      parts.push(el("div", { class: "placeholder" }, "No picture:", el("br", {}), picture.missing));
    }
    return el("li", {}, el("figure", {}, ...parts, el("figcaption", {}, el("b", {}, (scores[row] / MILLION).toFixed(3)), ...truthBadge(row),
      el("span", { class: "name", title: rows.keys[row] }, el("bdi", {}, base(rows.keys[row]))))));
  }
  const warningText = (row) => (rows.warning_values[rows.warning[row]] ? [el("p", { class: "muted" }, `Warnings: ${rows.warning_values[rows.warning[row]]}`)] : []);

  function drawGallery() {
    const place = byId("gallery-body");
    place.replaceChildren();
    const pictured = (row) => Boolean(report.pictures?.[row]);
    const rowsShown = part.gallery.flatMap((one) => one.rows);
    if (!report.pictures) {
      place.append(el("p", { class: "muted" }, "This report was made without pictures."));
    } else if (rowsShown.some((row) => mapOf(report.pictures[row]))) {
      place.append(
        el("div", { class: "gallery-tools" }, fader(),
          el("span", { class: "key-row" },
            el("span", {}, el("span", { class: "swatch", tone: "#e66101" }), `adds to the score of ${label}`),
            el("span", {}, el("span", { class: "swatch", tone: "#5e3c99" }), "subtracts from it"))),
        el("p", { class: "muted" }, "A heatmap shows what the score is based on. Its strongest place has the same opacity in each image. It is not evidence of where a finding is."));
    } else {
      place.append(el("p", { class: "muted" }, "There are no heatmaps: the model has none, or the report was made without its bundle."));
    }
    if (report.pictures && !rowsShown.every(pictured)) {
      place.append(el("p", { class: "muted" }, `The labels share the ${Object.keys(report.pictures).length} pictures of this file. Images without one are listed by name.`));
    }
    if (!all.length) place.append(el("p", { class: "empty" }, "No image has a score yet."));
    for (const { title, note, rows: images } of all.length ? part.gallery : []) {
      place.append(el("h3", {}, title), el("p", { class: "muted part-note" }, note));
      if (!images.length) place.append(el("p", { class: "empty" }, "None."));
      for (const [kind, some] of [["thumbs", images.filter(pictured)], ["thumbs text", images.filter((row) => !pictured(row))]]) {
        if (some.length) place.append(el("ul", { class: kind }, ...some.map(thumb)));
      }
    }
  }

  // Predictions: this script sorts and filters columns of numbers, and DataTables shows one page of rows

  const warnings = Int32Array.from(rows.warning), errors = Int32Array.from(rows.error);
  const referenced = report.labels.some((one) => one.reference);
  const columns = ["Key", "Outcome", "Score", ...(referenced ? ["Reference"] : []), "Warnings"];
  const SCORE = columns.indexOf("Score");
  const orders = new Map();
  let values; // of each column, for its order

  // Rows in the order of a column. A value and its row number are one float: this sorts without a function.
  function order(column, direction) {
    const name = `${column} ${direction}`;
    if (!orders.has(name)) {
      const last = 2 ** 26; // after every score, for rows without one
      const packed = Float64Array.from(values[column], (value, i) =>
        ((value === FAILED ? last : direction === "asc" ? value : last - 1 - value)) * 2 ** 26 + i);
      packed.sort();
      orders.set(name, Int32Array.from(packed, (value) => value % 2 ** 26));
    }
    return orders.get(name);
  }

  const filters = byId("filters"), field = (id) => byId(id).value;
  const option = (value, text) => el("option", { value }, text);
  byId("warning").append(option("", "all"), option("any", "any warning"), option("none", "no warning"),
    ...report.warnings.map(({ code }) => option(code, code)));
  let lowered, table;

  function refill(select, ...options) {
    const { value } = select;
    select.replaceChildren(option("", "all"), option("1", label), option("0", negative), ...options);
    select.value = value; // also of another label
  }

  function drawTable() {
    refill(byId("outcome"), option("failed", "failed"), ...report.failures.map(({ code }) => option(code, `failed: ${code}`)));
    refill(byId("truth"), option("-1", "no label"),
      option("false-positive", "false positives at the threshold"), option("false-negative", "false negatives at the threshold"));
    byId("truth-filter").hidden = !truth;
    values = [
      Int32Array.from(rows.keys, (_, i) => i), // keys are sorted
      Int32Array.from(part.positive, (positive, i) => (scores[i] === FAILED ? 2 + errors[i] : 1 - positive)),
      scores,
      ...(referenced ? [truth ? Int32Array.from(truth, (value) => (value === -1 ? 2 : 1 - value)) : new Int32Array(size)] : []),
      warnings,
    ];
    orders.clear();
    if (table) table.draw(); else table = makeTable(); // which draws it
  }

  function found(column, direction) {
    const needle = field("search").trim().toLowerCase();
    const outcome = field("outcome"), warning = field("warning"), reference = truth ? field("truth") : "";
    const from = field("from") === "" ? -Infinity : atLeast(+field("from"));
    const to = field("to") === "" ? Infinity : Math.floor(+field("to") * MILLION + 1e-6);
    const ranged = from !== -Infinity || to !== Infinity;
    const least = atLeast(threshold);
    lowered ??= rows.keys.map((key) => key.toLowerCase());
    const named = (values) => values.map((value) => needle !== "" && value.toLowerCase().includes(needle));
    const errorNamed = named(rows.error_values), warningNamed = named(rows.warning_values);
    const warned = rows.warning_values.map((codes) => (warning === "" ? true
      : warning === "any" ? codes !== "" : warning === "none" ? codes === "" : codes.split(" ").includes(warning)));
    const fits = (i) => {
      const score = scores[i];
      if (!warned[warnings[i]] || (ranged && (score === FAILED || score < from || score > to))) return false;
      if (warning === "none" && score === FAILED) return false;
      if (outcome === "failed" ? score !== FAILED
        : outcome === "0" || outcome === "1" ? score === FAILED || String(part.positive[i]) !== outcome
          : outcome !== "" && rows.error_values[errors[i]] !== outcome) return false;
      if (reference !== "") {
        if (reference === "false-positive" ? !(truth[i] === 0 && score >= least)
          : reference === "false-negative" ? !(truth[i] === 1 && score < least)
            : String(truth[i]) !== reference) return false;
      }
      return needle === "" || lowered[i].includes(needle) || errorNamed[errors[i]] || warningNamed[warnings[i]];
    };
    return order(column, direction).filter(fits);
  }

  const cells = (i) => [
    rows.keys[i],
    scores[i] === FAILED ? rows.error_values[errors[i]] : calledText(i),
    scoreText(scores[i]),
    ...(referenced ? [!truth || truth[i] === -1 ? "" : truth[i] ? label : negative] : []),
    rows.warning_values[warnings[i]],
  ];
  const makeTable = () => new DataTable("#table", {
    serverSide: true, // the script is the server
    ajax: (request, answer) => {
      const { column, dir } = request.order[0] ?? { column: 0, dir: "asc" };
      const left = found(column, dir);
      byId("print-note").textContent = `The first ${Math.min(20, request.length, left.length)} of ${count(left.length)} rows.`;
      answer({ draw: request.draw, recordsTotal: size, recordsFiltered: left.length,
        data: Array.from(left.subarray(request.start, request.start + request.length), (i) => [...cells(i), i]) });
    },
    columns: columns.map((title, i) => ({ title, className: i === SCORE ? "number score" : "", render: DataTable.render.text(), orderSequence: i === SCORE ? ["desc", "asc"] : ["asc", "desc"] })),
    createdRow: (tr, data) => {
      const row = data.at(-1), [, outcome, score, reference] = tr.cells;
      const badge = (cell, kind) => cell.replaceChildren(el("span", { class: kind }, cell.textContent));
      badge(outcome, scores[row] === FAILED ? "badge" : tone(part.positive[row]));
      if (truth && truth[row] !== -1) badge(reference, tone(truth[row]));
      score.style.setProperty("--share", Math.max(0, scores[row]) / MILLION);
      score.style.setProperty("--tone", part.positive[row] ? "var(--positive)" : "var(--negative)");
    },
    order: [[SCORE, "desc"]], orderMulti: false, searching: false, autoWidth: false, pageLength: 25, lengthMenu: [25, 100, 500],
    layout: { topStart: null, topEnd: null, bottomStart: ["info", "pageLength"], bottomEnd: "paging" },
    language: { aria: { paginate: { first: "First page", previous: "Previous page", next: "Next page", last: "Last page", number: "Page " } },
      info: "_START_ to _END_ of _TOTAL_ images", infoEmpty: "No image", infoFiltered: "(of _MAX_ in all)",
      zeroRecords: "No image matches. Clear the search and the filters to see all.", emptyTable: "This run has no predictions yet.", lengthMenu: "_MENU_ a page" },
  });
  filters.addEventListener("input", () => table.draw());
  filters.addEventListener("reset", () => setTimeout(() => table.draw()));
  filters.addEventListener("submit", (event) => event.preventDefault());

  // Run, model, cost

  const facts = (pairs) => el("dl", { class: "facts" }, ...pairs.flatMap(([name, value]) => [el("dt", {}, name), el("dd", {}, value)]));
  const closed = (title, ...inside) => el("details", {}, el("summary", {}, title), ...inside);
  const { run, model, settings, settings_of } = report.about;
  const left = el("div", {}, el("h3", {}, "Run"), facts(run), el("h3", {}, "Cost")), right = el("div", {}, el("h3", {}, "Model"));
  const { cost } = report;
  if (cost) {
    left.append(
      scrollable("Cost", el("table", {}, head(["Item"], ["Quantity", 1], ["Unit"], ["Dollars", 1]),
        el("tbody", {}, ...cost.lines.map((line) => el("tr", {}, el("th", { scope: "row" }, line.item), el("td", { class: "number" }, line.quantity), el("td", {}, line.unit), el("td", { class: "number" }, line.dollars)))),
        el("tfoot", {}, el("tr", {}, el("th", { scope: "row" }, "Total"), el("td", {}), el("td", {}), el("td", { class: "number" }, cost.total))))),
      el("p", {}, `${cost.per_1000} for 1,000 images. The estimated time is ${cost.seconds}; the bottleneck is: ${cost.bottleneck}. While nothing runs, the stack costs ${cost.idle} a month.`),
      el("p", { class: "muted" }, cost.note));
  } else {
    left.append(el("p", { class: "empty" }, "Not known: the run and the stack do not record the stack's settings, or this model's speed was not measured."));
  }
  if (model) {
    right.append(facts(model.facts));
    if (model.worth.length) {
      right.append(el("h3", {}, "Measured quality"),
        scrollable("Measured quality of the model", el("table", {}, head(["Images of"], ["images", 1], ["patients", 1], ["AUC", 1], ["95% interval", 1]),
          el("tbody", {}, ...model.worth.map(([name, ...values]) => el("tr", {}, el("th", { scope: "row" }, name), ...values.map((value) => el("td", { class: "number" }, value))))))),
        el("p", { class: "muted" }, model.worth_note));
    }
    if (model.limitations.length) right.append(closed(`Limitations (${model.limitations.length})`, el("ul", { class: "plain" }, ...model.limitations.map((line) => el("li", {}, line)))));
    if (model.training.length) right.append(closed("How it was trained", facts(model.training)));
  } else {
    right.append(el("p", { class: "empty" }, "This report was made without the bundle that scored the run. The bundle has the model card: intended use, training, limitations and licence."));
  }
  byId("about-body").append(left, right);
  if (settings) {
    byId("about").append(el("h3", {}, `Settings of the stack ${settings_of}`), facts(settings));
    byId("about").lastChild.classList.add("wide");
  }

  // The label that is shown. The address names it, so that a link opens it.

  const chooser = byId("label");
  if (several) {
    byId("chooser").hidden = false;
    chooser.append(...report.labels.map((one) => el("option", {}, one.label)));
    chooser.addEventListener("change", () => {
      const seen = scrollY > 0 ? sections.findLast((section) => section.getBoundingClientRect().top < innerHeight / 2) : null;
      const top = seen?.getBoundingClientRect().top;
      show(report.labels[chooser.selectedIndex]);
      if (seen) scrollBy(0, seen.getBoundingClientRect().top - top); // what is above it is now shorter or longer
      nameInAddress(new URLSearchParams(location.hash.slice(1)).get("section"));
    });
    addEventListener("hashchange", follow);
  }
  const bar = document.querySelector(".bar"); // covers the top of what is scrolled to
  const measureBar = () => document.documentElement.style.setProperty("--bar", `${bar.offsetHeight}px`);
  measureBar();
  new ResizeObserver(measureBar).observe(bar);
  follow();

  function show(one) {
    part = one;
    ({ label, negative, evaluation } = part);
    scores = Int32Array.from(part.scores);
    truth = part.reference && Int8Array.from(part.reference);
    all = sorted(() => true);
    positives = truth && sorted((i) => truth[i] === 1);
    negatives = truth && sorted((i) => truth[i] === 0);
    threshold = part.threshold ?? 0.5;
    clearTimeout(later);
    charts.length = 0;
    dialog.close();
    document.title = `${report.run}${several ? `, ${label}` : ""}: chest X-ray run`;
    chooser.selectedIndex = report.labels.indexOf(part);
    byId("chosen").textContent = label;
    drawHead();
    drawHistogram();
    setSliders(threshold);
    atThreshold();
    drawEvaluation();
    drawGallery();
    drawTable();
    drawCharts();
  }

  function follow() {
    const asked = new URLSearchParams(location.hash.slice(1));
    const named = report.labels.find((one) => one.label === asked.get("label"));
    const next = named ?? part ?? report.labels[0];
    if (next !== part) show(next);
    const id = named ? asked.get("section") : location.hash.slice(1); // a link in the page names a section only
    const section = sections.find((one) => one.id === id);
    section?.scrollIntoView();
    if (several && section && !named) nameInAddress(id);
  }

  function nameInAddress(section) {
    history.replaceState(null, "", `#${new URLSearchParams({ label, ...(section && { section }) })}`);
  }

  const limitations = document.querySelector("main details");
  let open;
  addEventListener("beforeprint", () => { // on paper a chart is as wide as its column, and nothing can be opened
    for (const box of charts) box.draw(box.paper);
    open = limitations?.open;
    limitations?.setAttribute("open", "");
  });
  addEventListener("afterprint", () => {
    for (const box of charts) box.draw(box.width);
    limitations?.toggleAttribute("open", open);
  });
  new ResizeObserver(drawCharts).observe(byId("main"));
  document.documentElement.dataset.ready = performance.now().toFixed(0);

  // Elements

  function head(...names) {
    return el("thead", {}, el("tr", {}, ...names.map(([name, right]) => el("th", { scope: "col", class: right ? "number" : "" }, name))));
  }

  function el(tag, attributes, ...children) {
    const element = document.createElement(tag);
    for (const [name, value] of Object.entries(attributes)) {
      if (name === "tone") element.style.setProperty("--swatch", value);
      else if (name === "share") element.style.setProperty("--share", value);
      else element.setAttribute(name, value);
    }
    element.append(...children);
    return element;
  }

  function scrollable(name, table) {
    return el("div", { class: "scroll", tabindex: 0, role: "region", "aria-label": name }, table);
  }

  function svgEl(tag, attributes) {
    const element = document.createElementNS("http://www.w3.org/2000/svg", tag);
    for (const [name, value] of Object.entries(attributes)) element.setAttribute(name, value);
    return element;
  }

  async function unpack(element) {
    const text = atob(element.textContent);
    const bytes = new Uint8Array(text.length);
    for (let i = 0; i < text.length; i += 1) bytes[i] = text.charCodeAt(i);
    element.remove(); // megabytes that are not needed any more
    return new Response(new Blob([bytes]).stream().pipeThrough(new DecompressionStream("gzip"))).json();
  }
})().catch((error) => {
  document.getElementById("run").textContent = "This report could not be opened";
  document.getElementById("subtitle").textContent = `It needs a browser of 2023 or later. ${error}`;
  throw error;
});
