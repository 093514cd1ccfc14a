// What the page shows: kept in the address, so that a reload or a link shows the same again.

export const EMPTY = { verdict: "", rule: "", only: false, near: "", decided: null, source: "", language: "", text: "" };

export const state = {
  dataset: null,
  profile: "",
  bounds: {},
  filter: { ...EMPTY },
  sort: "",
  descending: false,
  page: 0,
  rows: [],
  total: 0,
  selected: -1,
  clip: "",
};

const PER_PAGE = 60;
export const pages = () => Math.max(1, Math.ceil(state.total / PER_PAGE));

export function question() {
  return { profile: state.profile, bounds: state.bounds };
}

export function clipsQuestion() {
  const { filter, sort, descending, page } = state;
  return { ...question(), filter, sort, descending, page, per_page: PER_PAGE };
}

export function profileOf(name = state.profile) {
  return state.dataset.profiles.find((profile) => profile.name === name);
}

export function saveToAddress() {
  const { profile, bounds, filter, sort, descending, page, clip } = state;
  const kept = { profile, sort, descending, page, clip, bounds, filter };
  history.replaceState(null, "", `#${encodeURIComponent(JSON.stringify(kept))}`);
}

// Whatever stands in the address is checked: a link may come from anybody.
export function loadFromAddress() {
  let kept = {};
  try {
    kept = JSON.parse(decodeURIComponent(location.hash.slice(1)) || "{}") ?? {};
  } catch {
    kept = {};
  }
  const names = state.dataset.profiles.map((profile) => profile.name);
  state.profile = names.includes(kept.profile) ? kept.profile : names.includes("pretrain") ? "pretrain" : names[0] ?? "";
  const rules = new Set((profileOf()?.rules ?? []).map((rule) => rule.rule));
  state.bounds = Object.fromEntries(
    Object.entries(kept.bounds ?? {}).filter(([rule, bound]) => rules.has(rule) && typeof bound === "number"),
  );
  for (const [name, empty] of Object.entries(EMPTY)) {
    const value = kept.filter?.[name];
    const fits = name === "decided" ? value === true || value === false : typeof value === typeof empty;
    state.filter[name] = fits ? value : empty;
  }
  const measures = state.dataset.measures.map((measure) => measure.measure);
  state.sort = measures.includes(kept.sort) ? kept.sort : "";
  state.descending = kept.descending === true;
  state.page = Number.isInteger(kept.page) && kept.page > 0 ? kept.page : 0;
  state.clip = typeof kept.clip === "string" ? kept.clip : "";
}
