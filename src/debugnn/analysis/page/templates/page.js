"use strict";
/* Draws charts, networks and heatmaps when they come into view. Nothing is loaded from elsewhere. */
(() => {
  const DATA = JSON.parse(document.getElementById("data").textContent);
  const css = (name) => getComputedStyle(document.documentElement).getPropertyValue(name).trim();
  const colour = (i) => css(`--c${i % 7}`);
  const MANY_SERIES = 8;
  const WHOLE = [0, 1, 2, 3, 4, 5, 6].flatMap((power) => [1, 2, 5].map((k) => k * 10 ** power));  // between ticks
  const DASHES = [[], [6, 4], [2, 3], [9, 3, 2, 3]];

  function make(tag, properties = {}, ...children) {
    const element = Object.assign(document.createElement(tag), properties);
    element.append(...children);
    return element;
  }

  function shown(value) {
    if (value === null || value === undefined) return "–";
    const size = Math.abs(value);
    if (value !== 0 && (size >= 1e5 || size < 1e-3)) return exponent(value, 2);
    return String(+value.toPrecision(4));
  }
  function exponent(value, digits) {
    const [mantissa, power] = value.toExponential(digits).split("e");
    return `${+mantissa}e${+power}`;
  }

  /* ---- charts ---- */

  /* Of the values that a logarithmic axis offers, keep at most so many powers of ten. */
  function decades(splits, most) {
    const whole = splits.filter((v) => Math.abs(Math.log10(v) - Math.round(Math.log10(v))) < 1e-9);
    if (whole.length < 2) return splits;
    const skip = Math.ceil(whole.length / Math.max(2, Math.floor(most)));
    const kept = new Set(whole.filter((_, i) => i % skip === 0));
    return splits.map((v) => (kept.has(v) ? v : null));
  }

  function chart(spec) {
    const box = make("div", { className: "chart" }, make("h4", { textContent: spec.title }));
    const controls = make("div", { className: "controls" });
    const place = make("div");
    place.setAttribute("role", "img");
    place.setAttribute("aria-label", summary(spec));
    const at = make("output", { textContent: "" });
    box.append(place, controls);
    const boxes = [], outputs = [];
    const many = spec.series.length > MANY_SERIES;
    const others = make("div", { className: "controls" });
    spec.series.forEach((series, i) => {
      const check = make("input", { type: "checkbox", checked: !series.hidden });
      const swatch = make("i");
      swatch.style.setProperty("--swatch", `var(--c${i % 7})`);
      const value = make("output");
      const seeds = series.seeds > 1 && !many ? ` (${series.seeds} seeds)` : "";
      const label = make("label", {}, check, swatch, series.name + seeds, value);
      (many && series.hidden ? others : controls).append(label);
      check.addEventListener("change", () => {
        for (const k of [1, 2, 3]) plot.setSeries(3 * i + k, { show: check.checked });
      });
      boxes.push(check);
      outputs.push(value);
    });
    let log = spec.log, plot;
    const scale = make("button", { type: "button", textContent: "log" });
    scale.setAttribute("aria-pressed", log);
    scale.setAttribute("aria-label", `logarithmic axis: ${spec.title}`);
    scale.addEventListener("click", () => {
      log = !log;
      scale.setAttribute("aria-pressed", log);
      draw();
    });
    controls.append(scale, at);
    if (others.childElementCount) {
      const more = make("summary", { textContent: `${others.childElementCount} more arms` });
      box.append(make("details", {}, more, others));
    }

    function draw() {
      const width = place.clientWidth || 320;
      if (plot) plot.destroy();
      const keep = (value) => (log && value !== null && value <= 0 ? null : value);
      const columns = spec.series.flatMap((s) => [s.mean, s.low, s.high].map((c) => c.map(keep)));
      const series = spec.series.flatMap((s, i) => {
        const line = { stroke: colour(i), width: 1.8, dash: DASHES[Math.floor(i / 7) % DASHES.length], points: { show: spec.x.length < 3 }, show: boxes[i].checked, spanGaps: true };
        const edge = { stroke: "transparent", points: { show: false }, show: boxes[i].checked };
        return [line, edge, edge];
      });
      const bands = spec.series.map((s, i) => ({ series: [3 * i + 3, 3 * i + 2], fill: colour(i) + "2e" }));
      const axis = { stroke: css("--quiet"), grid: { stroke: css("--grid"), width: 1 }, ticks: { stroke: css("--grid") }, font: "12px system-ui" };
      const labels = (u, splits) => splits.map((v) => (v === null ? "" : shown(v)));
      const logarithmic = (most) => {
        const filter = (u, splits) => decades(splits, most);
        return { filter, grid: { ...axis.grid, filter }, ticks: { ...axis.ticks, filter } };
      };
      plot = new uPlot({
        width, height: 230, legend: { show: false }, cursor: { y: false },
        scales: { x: { time: false, distr: spec.xLog ? 3 : 1 }, y: { distr: log ? 3 : 1 } },
        axes: [
          { ...axis, label: spec.xLabel, labelSize: 20, size: 36, values: labels, ...(spec.xLog ? logarithmic(width / 70) : { incrs: WHOLE }) },
          { ...axis, size: 58, values: labels, ...(log ? logarithmic(6) : {}) },
        ],
        series: [{}, ...series], bands,
        hooks: { setCursor: [(u) => read(u.cursor.idx)] },
      }, [spec.x, ...columns], place);
    }
    function read(index) {
      const known = index !== null && index !== undefined;
      at.textContent = known ? `${spec.xLabel} ${shown(spec.x[index])}` : "";
      spec.series.forEach((s, i) => { outputs[i].textContent = known ? shown(s.mean[index]) : ""; });
    }
    place.tabIndex = 0;
    place.addEventListener("keydown", (event) => {
      if (event.key !== "ArrowRight" && event.key !== "ArrowLeft") return;
      event.preventDefault();
      const last = spec.x.length - 1;
      const now = plot.cursor.idx ?? (event.key === "ArrowRight" ? -1 : last + 1);
      const next = Math.min(last, Math.max(0, now + (event.key === "ArrowRight" ? 1 : -1)));
      plot.setCursor({ left: plot.valToPos(spec.x[next], "x"), top: 0 });
      read(next);
    });
    box.redraw = draw;
    return box;
  }

  function summary(spec) {
    const ends = spec.series.map((s) => {
      const values = s.mean.filter((v) => v !== null);
      return `${s.name}: from ${shown(values[0])} to ${shown(values[values.length - 1])}`;
    });
    return `${spec.title} by ${spec.xLabel}. ${ends.join("; ")}. Arrow keys move the cursor.`;
  }

  /* ---- the network ---- */

  function chooser(choices, name, change) {
    const select = make("select");
    select.setAttribute("aria-label", name);
    choices.forEach((text, i) => select.append(make("option", { value: i, textContent: text })));
    select.addEventListener("change", () => change(+select.value));
    return select;
  }

  /* What the tiles can be coloured by: how a layer's value becomes a place on the colour scale. */
  const COLOURS = {
    "gradient norm": { of: "gradient", log: true, words: (v) => `|g| ${shown(v)}` },
    "dead units": { of: "dead_units", words: (v) => `dead ${Math.round(100 * v)} %` },
    "saturated values": { of: "saturated", words: (v) => `saturated ${Math.round(100 * v)} %` },
    "deviation of the output": { of: "std", log: true, words: (v) => `std ${shown(v)}` },
  };

  function network(specs) {
    const box = make("div");
    const layers = make("div", { className: "layers" });
    const slider = make("input", { type: "range", min: 0, step: 1, value: 0 });
    slider.setAttribute("aria-label", "step of the training");
    const play = make("button", { type: "button", textContent: "Play" });
    const readout = make("div", { className: "readout" });
    readout.setAttribute("aria-live", "off");
    let spec, tiles, by, lowest, highest, timer = null;
    const select = chooser(specs.map((s) => s.arm), "arm", (i) => { stop(); load(i); });
    const values = (name) => specs.flatMap((s) => s.layers.flatMap((l) => l[COLOURS[name].of] ?? [])).filter((v) => v !== null);
    const names = Object.keys(COLOURS).filter((name) => values(name).length);
    const colours = chooser(names, "colour", (i) => { paint(i); step(); });
    box.append(make("div", { className: "controls" }, select, colours, play, slider), readout, layers);

    function paint(i) {
      by = COLOURS[names[i]];
      const scaled = by.log ? values(names[i]).filter((v) => v > 0).map(Math.log10) : [0, 1];
      lowest = Math.min(...scaled);
      highest = Math.max(...scaled);
    }
    function load(i) {
      spec = specs[i];
      slider.max = spec.steps.length - 1;
      slider.value = 0;
      layers.replaceChildren();
      tiles = spec.layers.map((layer) => {
        const tile = make("div", { className: "tile" });
        const told = make("div", { className: "units" });
        layers.append(make("div", { className: "layer" }, make("b", { textContent: layer.name }), tile, told));
        return { layer, tile, told };
      });
      step();
    }
    function step() {
      const k = +slider.value;
      const ends = by.log ? `from ${shown(10 ** lowest)} to ${shown(10 ** highest)}` : "from 0 to 100 %";
      readout.textContent = `step ${spec.steps[k]}, loss ${shown(spec.loss[k])} (seed ${spec.seed}); colour: ${names[colours.value]} ${ends}`;
      slider.setAttribute("aria-valuetext", `step ${spec.steps[k]}`);
      for (const { layer, tile, told } of tiles) {
        const value = layer[by.of]?.[k] ?? null;
        const scaled = by.log ? Math.log10(value) : value;
        const at = by.log && !(value > 0) ? 0 : (scaled - lowest) / (highest - lowest || 1);
        tile.style.background = value === null ? "transparent" : viridis(at);
        tile.style.color = value === null ? "" : at > 0.45 ? "#000" : "#fff";
        const missing = by.of === "gradient" ? "gradient not finite" : "–";
        tile.textContent = value === null ? missing : by.words(value);
        told.replaceChildren(...Object.values(COLOURS).filter((other) => other !== by)
          .filter((other) => (layer[other.of]?.[k] ?? null) !== null)
          .map((other) => make("div", { textContent: other.words(layer[other.of][k]) })));
      }
    }
    function stop() {
      clearInterval(timer);
      timer = null;
      play.textContent = "Play";
    }
    slider.addEventListener("input", () => { stop(); step(); });
    play.addEventListener("click", () => {
      if (timer !== null) return stop();
      if (+slider.value === +slider.max) slider.value = 0;
      play.textContent = "Pause";
      timer = setInterval(() => {
        if (+slider.value === +slider.max) return stop();
        slider.value = +slider.value + 1;
        step();
      }, 120);
    });
    paint(0);
    load(0);
    return box;
  }

  /* ---- heatmaps ---- */

  const VIRIDIS = [[68, 1, 84], [71, 44, 122], [59, 81, 139], [44, 113, 142], [33, 144, 141], [39, 173, 129], [92, 200, 99], [170, 220, 50], [253, 231, 37]];
  function viridis(share) {
    const at = Math.min(1, Math.max(0, share)) * (VIRIDIS.length - 1);
    const low = Math.floor(at), rest = at - low, high = Math.min(low + 1, VIRIDIS.length - 1);
    return `rgb(${VIRIDIS[low].map((c, k) => Math.round(c + rest * (VIRIDIS[high][k] - c))).join(",")})`;
  }

  function heatmaps(specs) {
    const box = make("div");
    const grid = make("div", { className: "heat-grid" });
    const readout = make("div", { className: "readout", textContent: "Point at a cell for its value, or use the arrow keys." });
    readout.setAttribute("aria-live", "polite");
    let parts = [];
    function load(i) {
      const spec = specs[i];
      parts = spec.tensors.map((tensor) => heat(spec, tensor, readout));
      grid.replaceChildren(...parts);
      requestAnimationFrame(draw);
    }
    function draw() { parts.forEach((part) => part.draw()); }
    box.append(make("div", { className: "controls" }, chooser(specs.map((s) => s.arm), "arm", load)), grid, readout);
    load(0);
    box.redraw = draw;
    return box;
  }

  function heat(spec, tensor, readout) {
    const canvas = make("canvas");
    const box = make("div", { className: "heat" }, make("h4", { textContent: tensor.name }), canvas);
    const rows = spec.edges.length, steps = tensor.steps.length;  // the first row holds exact zeros
    const cells = Uint8Array.from(atob(tensor.shares), (c) => c.charCodeAt(0));
    const share = (row, k) => (cells[row * steps + k] ? 10 ** (-3 + 3 * (cells[row * steps + k] - 1) / 254) : 0);
    const peak = (k) => { let best = 0; for (let row = 1; row < rows; row++) if (cells[row * steps + k] > cells[best * steps + k]) best = row; return best; };
    const magnitude = (row) => (row ? `10^${((spec.edges[row - 1] + spec.edges[row]) / 2).toFixed(1)}` : "exact zeros");
    canvas.setAttribute("role", "img");
    canvas.setAttribute("aria-label", `${tensor.name}: most values at ${magnitude(peak(0))} at step ${tensor.steps[0]}, at ${magnitude(peak(steps - 1))} at step ${tensor.steps[steps - 1]}. Arrow keys move from cell to cell.`);
    canvas.tabIndex = 0;
    let at = null;  // the cell that the keyboard has chosen
    const left = 44, bottom = 22, top = 8, gap = 6;
    function frame() {
      const width = canvas.clientWidth, height = canvas.clientHeight;
      const zero = (height - top - bottom) / (rows + 1);
      return { width, height, wide: (width - left - 4) / steps, tall: (height - top - bottom - gap - zero) / (rows - 1), zero };
    }
    const y = (f, row) => (row ? f.height - bottom - f.zero - gap - row * f.tall : f.height - bottom - f.zero);
    box.draw = () => {
      const f = frame(), ratio = devicePixelRatio || 1;
      canvas.width = f.width * ratio;
      canvas.height = f.height * ratio;
      const g = canvas.getContext("2d");
      g.scale(ratio, ratio);
      const most = +css("--most");
      for (let row = 0; row < rows; row++) for (let k = 0; k < steps; k++) {
        const value = cells[row * steps + k];
        if (!value) continue;
        g.fillStyle = viridis(most ? value / 255 : 1 - value / 255);
        g.fillRect(left + k * f.wide, y(f, row), f.wide + 0.6, (row ? f.tall : f.zero) + 0.6);
      }
      g.fillStyle = g.strokeStyle = css("--quiet");
      g.font = "11px system-ui";
      g.textAlign = "right";
      g.textBaseline = "middle";
      const decades = spec.edges.map((e, i) => [e, i]).filter(([e]) => Math.abs(e - Math.round(e)) < 1e-6);
      const skip = Math.ceil(decades.length / 6);
      decades.forEach(([e, i], n) => { if (n % skip === 0 && i) g.fillText(`1e${Math.round(e)}`, left - 5, y(f, i)); });
      g.fillText("0", left - 5, y(f, 0) + f.zero / 2);
      g.textBaseline = "alphabetic";
      g.textAlign = "left";
      g.fillText(`step ${tensor.steps[0]}`, left, f.height - 6);
      g.textAlign = "right";
      g.fillText(tensor.steps[steps - 1], f.width - 4, f.height - 6);
      g.strokeRect(left, top, f.width - left - 4, f.height - top - bottom);
      if (!at) return;
      g.strokeStyle = css("--ink");
      g.strokeRect(left + at.k * f.wide, y(f, at.row), f.wide, at.row ? f.tall : f.zero);
    };
    function tell(row, k) {
      readout.textContent = `${tensor.name}, step ${tensor.steps[k]}: ${(100 * share(row, k)).toPrecision(2)} % of the values at ${magnitude(row)}`;
    }
    canvas.addEventListener("pointermove", (event) => {
      const f = frame(), k = Math.floor((event.offsetX - left) / f.wide);
      if (k < 0 || k >= steps) return;
      let row = event.offsetY > y(f, 0) ? 0 : Math.floor((f.height - bottom - f.zero - gap - event.offsetY) / f.tall) + 1;
      row = Math.min(rows - 1, Math.max(0, row));
      tell(row, k);
    });
    canvas.addEventListener("keydown", (event) => {
      const move = { ArrowRight: [0, 1], ArrowLeft: [0, -1], ArrowUp: [1, 0], ArrowDown: [-1, 0] }[event.key];
      if (!move) return;
      event.preventDefault();
      const within = (value, end) => Math.min(end - 1, Math.max(0, value));
      at = at ? { row: within(at.row + move[0], rows), k: within(at.k + move[1], steps) } : { row: peak(0), k: 0 };
      box.draw();
      tell(at.row, at.k);
    });
    canvas.addEventListener("blur", () => { at = null; box.draw(); });
    return box;
  }

  /* ---- putting it together ---- */

  const drawn = [];
  const build = {
    charts: (specs) => specs.map(chart),
    networks: (specs) => [network(specs)],
    heatmaps: (specs) => [heatmaps(specs)],
  };
  function fill(place) {
    if (place.dataset.done) return;
    place.dataset.done = "true";
    const parts = build[place.dataset.kind](DATA[place.dataset.section][place.dataset.kind]);
    place.append(...parts);
    if (parts.length === 4) place.classList.add("four");
    parts.forEach((part) => { if (part.redraw) { part.redraw(); drawn.push(part); } });
  }
  const places = [...document.querySelectorAll("[data-kind]")];
  const seen = new IntersectionObserver((entries) => entries.forEach((entry) => {
    if (entry.isIntersecting) { seen.unobserve(entry.target); fill(entry.target); }
  }), { rootMargin: "400px" });
  places.forEach((place) => { place.style.minHeight = "8rem"; seen.observe(place); });

  const redraw = () => drawn.forEach((part) => part.redraw());
  let waiting = null;
  const again = () => { clearTimeout(waiting); waiting = setTimeout(redraw, 120); };
  let width = innerWidth;
  addEventListener("resize", () => { if (innerWidth !== width) { width = innerWidth; again(); } });
  matchMedia("(prefers-color-scheme: dark)").addEventListener("change", again);

  /* Paper is light, whatever the screen is, and nobody can unfold it. */
  let unfolded = [];
  addEventListener("beforeprint", () => {
    document.documentElement.classList.add("printing");
    unfolded = [...document.querySelectorAll(".claim details:not([open])")];
    unfolded.forEach((details) => { details.open = true; });
    places.forEach(fill);
    redraw();
  });
  addEventListener("afterprint", () => {
    document.documentElement.classList.remove("printing");
    unfolded.forEach((details) => { details.open = false; });
    redraw();
  });

  for (const button of document.querySelectorAll(".copy")) {
    button.hidden = false;
    button.addEventListener("click", async () => {
      const text = button.parentElement.querySelector("code").textContent;
      try {
        await navigator.clipboard.writeText(text);
        button.textContent = "Copied";
      } catch {  // a page from a file may not be allowed to
        getSelection().selectAllChildren(button.parentElement.querySelector("code"));
        button.textContent = "Selected";
      }
      setTimeout(() => { button.textContent = "Copy"; }, 1500);
    });
  }
})();
