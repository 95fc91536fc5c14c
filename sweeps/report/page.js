"use strict";
(() => {
  // Tables: a header's button sorts by its column, the best first; numbers by their value, empty cells last.
  const valueOf = (row, column) => {
    const cell = row.cells[column];
    return "value" in cell.dataset ? Number(cell.dataset.value) : cell.textContent;
  };
  const compare = (a, b) => {
    if (typeof a === "number" && typeof b === "number") return a - b;
    if (typeof a === "number") return -1;
    if (typeof b === "number") return 1;
    return a.localeCompare(b, "en", { numeric: true });
  };
  const sort = (header) => {
    const column = header.cellIndex;
    const order = header.getAttribute("aria-sort");
    const ascending = order === "none" ? header.dataset.first === "ascending" : order === "descending";
    const body = header.closest("table").tBodies[0];
    const rows = [...body.rows].map((row) => [valueOf(row, column), row]);
    const filled = rows.filter(([value]) => value !== "");
    filled.sort(([a], [b]) => (ascending ? compare(a, b) : compare(b, a)));
    for (const other of header.parentElement.cells) other.setAttribute("aria-sort", "none");
    header.setAttribute("aria-sort", ascending ? "ascending" : "descending");
    body.append(...filled.map(([, row]) => row), ...rows.filter(([value]) => value === "").map(([, row]) => row));
  };
  for (const button of document.querySelectorAll("th button")) {
    button.addEventListener("click", () => sort(button.closest("th")));
  }

  // Pictures: Plotly is unpacked once, each picture is drawn when it comes near the screen.
  const places = [...document.querySelectorAll(".picture")];
  for (const place of places) {
    place.style.height = `${place.dataset.height}px`;
    place.style.minWidth = `${place.dataset.width}px`;
  }
  const figures = JSON.parse(document.getElementById("figures").textContent);
  const say = (place, text) => {
    place.textContent = text;
    place.dataset.state = "failed";
  };
  const unpack = async () => {
    const packed = Uint8Array.from(atob(document.getElementById("plotly").textContent), (c) => c.charCodeAt(0));
    const stream = new Blob([packed]).stream().pipeThrough(new DecompressionStream("gzip"));
    const script = document.createElement("script");
    script.textContent = await new Response(stream).text();
    document.head.append(script);
    if (!window.Plotly) throw new Error("the script was refused");
  };
  const touch = matchMedia("(hover: none) and (pointer: coarse)").matches;
  const colour = (name) => getComputedStyle(document.documentElement).getPropertyValue(name).trim();
  const themed = (layout) => {
    const axis = { gridcolor: colour("--line"), zerolinecolor: colour("--line"), linecolor: colour("--line") };
    const found = {
      margin: { t: 30, r: 20, b: 50, l: 60 },
      legend: { orientation: "h", y: 1.02, yanchor: "bottom", x: 0 },
      hoverlabel: { align: "left" },
      ...layout,
      paper_bgcolor: "rgba(0,0,0,0)",
      plot_bgcolor: "rgba(0,0,0,0)",
      modebar: { bgcolor: "rgba(0,0,0,0)", color: colour("--soft"), activecolor: colour("--fore") },
      font: { color: colour("--fore"), family: "system-ui, sans-serif", size: 12 },
      autosize: true,
    };
    for (const key of Object.keys(found)) {
      if (/^[xy]axis/.test(key)) found[key] = { ...axis, ...found[key] };
    }
    const behind = { bgcolor: colour("--back"), opacity: 0.9 };
    if (found.annotations) found.annotations = found.annotations.map((text) => ({ ...behind, ...text }));
    if (touch) found.dragmode = false; // a finger scrolls the page
    found.xaxis = { ...axis, ...found.xaxis };
    found.yaxis = { ...axis, ...found.yaxis };
    return found;
  };
  const options = {
    responsive: true,
    displaylogo: false,
    displayModeBar: touch ? false : "hover",
    modeBarButtonsToRemove: ["lasso2d", "select2d"],
  };
  // Ten buttons a picture that do nothing for who can't point: not among the stops of the keyboard.
  const leaveOut = (place) => {
    for (const button of place.querySelectorAll(".modebar-btn")) button.tabIndex = -1;
  };
  const draw = async (place) => {
    const figure = figures[place.id];
    place.dataset.state = "drawing";
    try {
      await window.Plotly.newPlot(place, structuredClone(figure.data), themed(figure.layout), options);
      leaveOut(place);
      place.on("plotly_afterplot", () => leaveOut(place));
      place.dataset.state = "drawn";
    } catch (error) {
      say(place, `This picture could not be drawn: ${error.message}`);
    }
  };
  const start = async () => {
    if (!places.length) return;
    if (typeof DecompressionStream === "undefined") {
      for (const place of places) say(place, "This browser is too old to draw the pictures.");
      return;
    }
    await unpack();
    const waiting = (place) => place.dataset.state === undefined;
    const observer = new IntersectionObserver(
      (entries) => {
        for (const entry of entries) if (entry.isIntersecting && waiting(entry.target)) draw(entry.target);
      },
      { rootMargin: "400px" },
    );
    for (const place of places) observer.observe(place);
    window.addEventListener("beforeprint", () => places.filter(waiting).forEach(draw));
    matchMedia("(prefers-color-scheme: dark)").addEventListener("change", () => {
      for (const place of places) if (place.dataset.state === "drawn") draw(place);
    });
  };
  start().catch((error) => {
    for (const place of places) say(place, `The pictures could not be drawn: ${error.message}`);
  });
})();
