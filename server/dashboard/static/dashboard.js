// Draws the charts of a page, and follows a job's events: at each one the page is asked for again, and what carries
// data-live is replaced. Without this script a page shows the same figures in its tables.
"use strict";

const PLOT_HEIGHT = 210;
const REFRESH_MS = 400;
const SILENCE_MS = 40000; // after so long without an event the connection may be gone without a word: a new one is made
const ANSWER_MS = 15000;
const REST = 4; // between two requests, at least this many times what the last one took: a watcher must not load a server
const plots = new Map();

function token(name) {
  return getComputedStyle(document.documentElement).getPropertyValue(name).trim();
}

function axis(label) {
  const grid = { stroke: token("--line"), width: 1 };
  return { label, stroke: token("--dim"), grid, ticks: grid, labelSize: 20, size: label ? 34 : 62 };
}

function draw(element) {
  plots.get(element)?.destroy();
  plots.delete(element);
  const { rounds, lines } = JSON.parse(element.dataset.chart);
  const labels = Object.keys(lines);
  if (typeof uPlot === "undefined" || !rounds.length || !labels.length) return;
  const colours = ["--line-1", "--line-2", "--line-3", "--line-4", "--line-5", "--line-6"].map(token);
  const series = labels.map((label, at) => ({
    label,
    stroke: colours[at % colours.length],
    width: 2,
    dash: at < colours.length ? [] : [6, 4],
    spanGaps: true,
    points: { show: rounds.length < 40, size: 6 },
  }));
  const options = {
    width: Math.max(element.clientWidth, 200),
    height: PLOT_HEIGHT,
    scales: { x: { time: false } },
    axes: [axis("round"), axis("")],
    series: [{ label: "round" }, ...series],
  };
  plots.set(element, new uPlot(options, [rounds, ...labels.map((label) => lines[label])], element));
}

function drawAll() {
  document.querySelectorAll("[data-chart]").forEach(draw);
}

function take(page) {
  for (const current of document.querySelectorAll("[data-live]")) {
    const fresh = page.getElementById(current.id);
    if (!fresh) continue;
    if (fresh.dataset.chart === undefined) {
      current.replaceChildren(...document.importNode(fresh, true).childNodes);
    } else if (fresh.dataset.chart !== current.dataset.chart) {
      current.dataset.chart = fresh.dataset.chart;
      draw(current);
    }
  }
}

function follow(url) {
  const status = document.getElementById("live");
  let events = null;
  let silence = 0;
  let isAsking = false;
  let isWanted = false;
  let hasEnded = false;
  let restMs = REFRESH_MS;

  async function refresh() {
    isWanted = false;
    isAsking = true;
    const began = performance.now();
    try {
      const answer = await fetch(location.href, {
        headers: { accept: "text/html" },
        signal: AbortSignal.timeout(ANSWER_MS), // a browser may ask over a connection that is gone without a word
      });
      if (!answer.ok) throw new Error(`the server answers ${answer.status}`);
      take(new DOMParser().parseFromString(await answer.text(), "text/html"));
      status.textContent = hasEnded ? "" : "Live: this page follows the job.";
    } catch (error) {
      status.textContent = `This page is not up to date: ${error.message}`;
    }
    isAsking = false;
    restMs = Math.max(REFRESH_MS, REST * (performance.now() - began));
    if (isWanted) setTimeout(refresh, restMs);
  }

  function want() {
    const isFirst = !isWanted;
    isWanted = true;
    if (isFirst && !isAsking) setTimeout(refresh, restMs);
  }

  function expect() {
    clearTimeout(silence);
    silence = setTimeout(() => {
      events.close();
      connect();
      want();
    }, SILENCE_MS);
  }

  function connect() {
    events = new EventSource(url);
    events.onopen = () => {
      status.textContent = "Live: this page follows the job.";
    };
    events.onerror = () => {
      status.textContent = "The connection to the server is gone; trying again.";
    };
    events.onmessage = (message) => {
      expect();
      if (JSON.parse(message.data).event === "ended") {
        hasEnded = true;
        clearTimeout(silence);
        events.close();
      }
      want();
    };
    expect();
  }

  connect();
}

drawAll();
new ResizeObserver(() => {
  for (const [element, plot] of plots) plot.setSize({ width: Math.max(element.clientWidth, 200), height: PLOT_HEIGHT });
}).observe(document.getElementById("content"));
matchMedia("(prefers-color-scheme: dark)").addEventListener("change", drawAll);
const followed = document.querySelector("[data-events]");
if (followed) follow(followed.dataset.events);
