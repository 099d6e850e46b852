// Asks the server for what is new, says when it does not answer, and goes on asking. A saved page has it all within.
const POLL_MS = 1000, HIDDEN_MS = 10000, LATE_MS = 8000, MOST_WAIT_MS = 10000;
const saved = document.getElementById("data");
let seen = null, failures = 0, lostAt = null, timer = null, token = "";

/** Take an answer: sections as they are now, curves from where they differ. */
function take(answer) {
  if (seen !== null && seen.boot !== answer.seen.boot) {
    // Another process answers than before: it has told everything, and knows nothing of what the last one told.
    store.sections = {};
    store.series = {};
  }
  seen = answer.seen;
  store.now = answer.now;
  store.lookedAt = answer.looked_at;
  Object.assign(store.sections, answer.sections);
  for (const [name, [begin, points]] of Object.entries(answer.series)) {
    store.series[name] = [...(store.series[name] || []).slice(0, begin), ...points];
  }
  return { sections: Object.keys(answer.sections), series: Object.keys(answer.series) };
}

function draw({ sections, series }) {
  const changed = (...names) => names.some((name) => sections.includes(name) || series.includes(name));
  drawHead();
  if (changed("curve", "run", "events")) { drawLearning(); drawEvents(); }
  if (changed("cluster", "ring", "run")) drawCluster();
  if (changed("streams", "curve")) drawStreams();
  if (changed("versions")) drawVersions();
  if (changed("serving", "versions") || series.some((name) => name.startsWith("age of "))) drawServing();
}

function say(text, bad) {
  const place = byId("connection");
  place.classList.toggle("lost", bad);
  if (place.textContent !== text) place.textContent = text;
}

async function poll() {
  clearTimeout(timer);
  try {
    const query = seen === null ? "" : `?seen=${encodeURIComponent(JSON.stringify(seen))}`;
    const answer = await fetch(`data${query}`, {
      cache: "no-store", signal: AbortSignal.timeout(LATE_MS), headers: token ? { Authorization: `Bearer ${token}` } : {},
    });
    if (answer.status === 401) { askToken(); return; }
    if (!answer.ok) throw new Error(`the server answers with status ${answer.status}`);
    const news = take(await answer.json());
    failures = 0;
    lostAt = null;
    byId("ask-token").hidden = true;
    const still = store.now - store.lookedAt;
    say(still > 15 ? `penstock dash answers, but has not looked at the run for ${duration(still)}.` : "Live", still > 15);
    draw(news);
  } catch (error) {
    failures += 1;
    lostAt = lostAt ?? Date.now();
    // Of a network error browsers tell no more than that it was one.
    const why = error instanceof TypeError || error.name === "TimeoutError" || error.name === "AbortError" ? "" : ` (${error.message})`;
    say(`Connection lost at ${new Date(lostAt).toLocaleTimeString()}${why}. What is shown is from before; trying again.`, true);
  }
  const wait = failures ? Math.min(MOST_WAIT_MS, POLL_MS * 1.5 ** (failures - 1)) : document.hidden ? HIDDEN_MS : POLL_MS;
  timer = setTimeout(poll, wait);
}

function askToken() {
  say(token ? "The token is wrong." : "", Boolean(token));
  byId("ask-token").hidden = false;
  byId("token").focus();
}

function begin() {
  if (saved !== null) {
    draw(take(JSON.parse(saved.textContent)));
    say(`Saved at ${clock(store.now)} UTC`, false);
    return;
  }
  // What stands after # is not sent to the server, nor kept by it; it goes from the address once it is read.
  const given = new URLSearchParams(location.hash.slice(1)).get("token");
  const keep = "penstock-dash-token";
  token = given ?? sessionStorage.getItem(keep) ?? "";
  if (given !== null) {
    sessionStorage.setItem(keep, given);
    history.replaceState(null, "", location.pathname);
  }
  byId("ask-token").addEventListener("submit", (event) => {
    event.preventDefault();
    token = byId("token").value.trim();
    sessionStorage.setItem(keep, token);
    poll();
  });
  document.addEventListener("visibilitychange", () => { if (!document.hidden) poll(); });
  poll();
}
begin();
