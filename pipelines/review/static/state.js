// What the page shows: kept in the address, so that a reload or a link shows the same again.

export const EMPTY = { verdict: "", rule: "", only: false, near: "", decided: null, listed: false, source: "", language: "", text: "" };

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
  seconds: 0,
  selected: -1,
  clip: "",
  left: false, // whether a decision may have moved clips of this page out of the filter
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

export function saveToAddress(push = false) {
  const { profile, bounds, filter, sort, descending, page, clip } = state;
  const kept = { profile, sort, descending, page, clip, bounds, filter };
  const address = `#${encodeURIComponent(JSON.stringify(kept))}`;
  if (push) history.pushState({ opened: true }, "", address);
  else history.replaceState(history.state, "", address);
}

export function fromAddress() {
  try {
    const found = JSON.parse(decodeURIComponent(location.hash.slice(1)) || "{}");
    return found && typeof found === "object" ? found : {};
  } catch {
    return {};
  }
}

// Whatever stands in the address is checked: a link may come from anybody.
export function loadFromAddress() {
  const kept = fromAddress();
  const names = state.dataset.profiles.map((profile) => profile.name);
  state.profile = names.includes(kept.profile) ? kept.profile : names.includes("pretrain") ? "pretrain" : names[0] ?? "";
  const rules = (profileOf()?.rules ?? []).map((rule) => rule.rule);
  state.bounds = Object.fromEntries(
    Object.entries(kept.bounds ?? {}).filter(([rule, bound]) => rules.includes(rule) && Number.isFinite(bound)),
  );
  const known = { verdict: ["keep", "reject", "undecided"], rule: rules, near: rules };
  for (const [name, empty] of Object.entries(EMPTY)) {
    const value = kept.filter?.[name];
    const fits = name === "decided" ? typeof value === "boolean" : typeof value === typeof empty;
    state.filter[name] = fits && (known[name]?.includes(value) ?? true) ? value : empty;
  }
  const measures = state.dataset.measures.map((measure) => measure.measure);
  state.sort = measures.includes(kept.sort) ? kept.sort : "";
  state.descending = kept.descending === true;
  state.page = Number.isInteger(kept.page) && kept.page > 0 && kept.page < 1e9 ? kept.page : 0;
  state.clip = typeof kept.clip === "string" ? kept.clip : "";
}
