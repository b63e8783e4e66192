// Comparing values, by http://hl7.org/fhir/R4/search.html. Values are {type, value} of the evaluator.

export const fold = (text) => text.normalize("NFD").replace(/\p{M}/gu, "").toLowerCase();

const list = (value) => (Array.isArray(value) ? value : value === undefined || value === null ? [] : [value]);

/** [system or undefined, code] pairs of a value of a token parameter; `none` where there can be no system. */
function codings({ type, value }) {
  switch (type) {
    case "CodeableConcept":
      return list(value.coding).map((coding) => ({ system: coding.system, code: coding.code }));
    case "Coding":
      return [{ system: value.system, code: value.code }];
    case "Identifier":
      return [{ system: value.system, code: value.value }];
    case "ContactPoint":
      return [{ code: value.value, none: true }];
    case "code":
      return [{ code: value, implied: true }];
    case "boolean":
      return [{ code: String(value), none: true }];
    case "string":
      return [{ code: value, none: true, caseless: true }];
    // The evaluator says `System.String` of ids, as their definition does.
    case "System.String":
    case "id":
    case "uri":
      return [{ code: value, none: true }];
    case "Quantity":
    case "Range":
    case "Reference":
      return [];
    default:
      throw new Error(`tokens of type ${type} were not expected`);
  }
}

/** system: undefined for any, "" for none. code: undefined for any. */
export function token(found, { system, code }) {
  return codings(found).some((one) => {
    if (system) {
      // The systems of codes come from their bindings, which this side does not know; such queries are not made.
      if (one.none || one.implied || one.system !== system) return false;
    } else if (system === "" && one.system !== undefined) return false;
    if (code === undefined) return true;
    return one.caseless ? one.code?.toLowerCase() === code.toLowerCase() : one.code === code;
  });
}

export function codeText({ type, value }, start) {
  const texts = {
    CodeableConcept: () => [value.text, ...list(value.coding).map((coding) => coding.display)],
    Coding: () => [value.display],
    Identifier: () => [value.type?.text],
  }[type];
  return (texts?.() ?? []).some((text) => typeof text === "string" && fold(text).startsWith(fold(start)));
}

export function ofType({ type, value }, { system, code, identifier }) {
  return (
    type === "Identifier" &&
    value.value === identifier &&
    list(value.type?.coding).some((coding) => coding.system === system && coding.code === code)
  );
}

export function strings({ type, value }) {
  const parts = {
    HumanName: ["text", "family", "given", "prefix", "suffix"],
    Address: ["text", "line", "city", "district", "state", "postalCode", "country"],
  }[type];
  if (parts) return parts.flatMap((part) => list(value[part])).filter((part) => typeof part === "string");
  return typeof value === "string" ? [value] : [];
}

const pad = (text, width) => text.padEnd(width, "0");

/** Milliseconds {low, high}, high excluded, of a date or time of any precision. */
export function timeOf(text) {
  const match = text.match(
    /^(\d{4})(?:-(\d\d)(?:-(\d\d)(?:T(\d\d):(\d\d)(?::(\d\d)(?:\.(\d+))?)?(Z|[+-]\d\d:\d\d)?)?)?)?$/,
  );
  if (!match) return undefined;
  const [year, month, day, hour, minute, second] = match.slice(1, 7).map((part) => (part === undefined ? undefined : +part));
  const at = (...parts) => {
    const date = new Date(0);
    date.setUTCFullYear(parts[0], (parts[1] ?? 1) - 1, parts[2] ?? 1);
    date.setUTCHours(parts[3] ?? 0, parts[4] ?? 0, parts[5] ?? 0, 0);
    return date.getTime();
  };
  if (month === undefined) return { low: at(year), high: at(year + 1) };
  if (day === undefined) return { low: at(year, month), high: at(year, month + 1) };
  if (hour === undefined) return { low: at(year, month, day), high: at(year, month, day + 1) };
  let low = at(year, month, day, hour, minute, second);
  let width = second === undefined ? 60_000 : 1_000;
  if (match[7] !== undefined) {
    low += Number(pad(match[7], 3).slice(0, 3));
    width = 1_000 / 10 ** Math.min(match[7].length, 3);
  }
  const zone = match[8];
  if (zone && zone !== "Z") {
    const minutes = +zone.slice(1, 3) * 60 + +zone.slice(4);
    low -= (zone[0] === "-" ? -minutes : minutes) * 60_000;
  }
  return { low, high: low + width };
}

/** What a value of a date parameter covers; a point for an instant. */
function covered({ type, value }) {
  switch (type) {
    case "instant":
      return { low: timeOf(value).low, high: timeOf(value).low, point: true };
    case "date":
    case "dateTime":
      return timeOf(value);
    case "Period": {
      if (value.start === undefined && value.end === undefined) return undefined;
      return {
        low: value.start === undefined ? -Infinity : timeOf(value.start).low,
        high: value.end === undefined ? Infinity : timeOf(value.end).high,
      };
    }
    case "Timing": {
      const outer = [
        ...list(value.event).map((event) => timeOf(event)),
        ...list(value.repeat?.boundsPeriod).map((period) => covered({ type: "Period", value: period })),
      ].filter(Boolean);
      if (outer.length === 0) return undefined;
      return { low: Math.min(...outer.map((one) => one.low)), high: Math.max(...outer.map((one) => one.high)) };
    }
    default:
      return undefined;
  }
}

export function date(found, prefix, text) {
  const target = covered(found);
  if (!target) return false;
  const asked = timeOf(text);
  const inside = target.low >= asked.low && (target.point ? target.low < asked.high : target.high <= asked.high);
  const meetsAbove = target.point ? target.low >= asked.high : target.high > asked.high;
  const meetsBelow = target.low < asked.low;
  switch (prefix) {
    case "eq":
      return inside;
    case "ne":
      return !inside;
    case "gt":
      return meetsAbove;
    case "lt":
      return meetsBelow;
    case "ge":
      return meetsAbove || inside;
    case "le":
      return meetsBelow || inside;
    case "sa":
      return target.low >= asked.high;
    case "eb":
      return target.point ? target.low < asked.low : target.high <= asked.low;
    case "ap":
      return !(target.low >= asked.high) && !(target.point ? target.low < asked.low : target.high <= asked.low);
  }
}

/** A decimal as a fraction of integers over a common power of ten. */
const PLACES = 40;
export function decimal(text) {
  const match = String(text).match(/^([+-]?)(\d+)(?:\.(\d+))?(?:[eE]([+-]?\d+))?$/);
  const fraction = match[3] ?? "";
  const shift = PLACES - fraction.length + Number(match[4] ?? 0);
  let value = BigInt(match[2] + fraction);
  value = shift >= 0 ? value * 10n ** BigInt(shift) : value / 10n ** BigInt(-shift);
  return match[1] === "-" ? -value : value;
}

/** Half a unit of the last place of a plain decimal. */
function half(text) {
  const places = (text.split(".")[1] ?? "").length;
  return 5n * 10n ** BigInt(PLACES - places - 1);
}

/** {low, high} of a value; undefined is open. Comparators are left to the caller's queries: the data has none. */
function interval({ type, value }) {
  if (typeof value === "number") return { low: decimal(value), high: decimal(value) };
  if (type === "Range") {
    const bound = (one) => (one?.value === undefined ? undefined : decimal(one.value));
    if (value.low === undefined && value.high === undefined) return undefined;
    return { low: bound(value.low), high: bound(value.high) };
  }
  if (type === "SampledData") {
    const numbers = (value.data ?? "").split(/\s+/).filter((one) => /^-?[\d.]+$/.test(one));
    if (numbers.length === 0) return undefined;
    const scaled = numbers.map((one) => decimal(value.origin.value) + (decimal(one) * decimal(value.factor ?? 1)) / 10n ** BigInt(PLACES));
    return { low: scaled.reduce((a, b) => (a < b ? a : b)), high: scaled.reduce((a, b) => (a > b ? a : b)) };
  }
  if (value.comparator !== undefined) throw new Error("the data was not expected to have comparators");
  return value.value === undefined ? undefined : { low: decimal(value.value), high: decimal(value.value) };
}

function unitFits({ type, value }, { system, code }) {
  switch (type) {
    case "Money":
      return (system === "" || system === "urn:iso:std:iso:4217") && value.currency === code;
    case "Range":
      return [value.low, value.high].filter(Boolean).every((one) => unitFits({ type: "Quantity", value: one }, { system, code }));
    case "SampledData":
      return unitFits({ type: "Quantity", value: value.origin }, { system, code });
    default:
      if (system === "") return value.code === code || value.unit === code;
      return value.system === system && value.code === code;
  }
}

export function number(found, prefix, text, unit) {
  if (unit && !unitFits(found, unit)) return false;
  const target = interval(found);
  if (!target) return false;
  const asked = decimal(text);
  const width = half(text);
  const tenth = (asked < 0n ? -asked : asked) / 10n;
  const { low, high } = target;
  const inside = low !== undefined && high !== undefined && low >= asked - width && high < asked + width;
  switch (prefix) {
    case "eq":
      return inside;
    case "ne":
      return !inside;
    case "gt":
      return high === undefined || high > asked;
    case "ge":
      return high === undefined || high >= asked;
    case "lt":
      return low === undefined || low < asked;
    case "le":
      return low === undefined || low <= asked;
    case "sa":
      return low !== undefined && low > asked;
    case "eb":
      return high !== undefined && high < asked;
    case "ap":
      return (high === undefined || high >= asked - tenth) && (low === undefined || low <= asked + tenth);
  }
}

/** Whether a reference points to {id}, {type, id}, {url} or {url, version}. */
export function reference(found, { id, type, url, version }) {
  const text = found.type === "Reference" ? found.value.reference : found.value;
  if (typeof text !== "string") return false;
  if (found.type !== "Reference") {
    const [address, itsVersion] = text.split("|");
    return url !== undefined && address === url && (version === undefined || version === itsVersion);
  }
  const [, target, , itsVersion] = text.match(/^(.*?)(\/_history\/(.*))?$/);
  if (version !== undefined && version !== itsVersion) return false;
  if (url !== undefined) return target === url;
  const relative = target.match(/^([A-Z]\w*)\/([^/]+)$/);
  return relative !== null && relative[2] === id && (type === undefined || relative[1] === type);
}

export function uri({ type, value }, wanted) {
  return value === wanted || (type === "canonical" && !wanted.includes("|") && value.split("|")[0] === wanted);
}

export function uriBelow({ value }, wanted) {
  const base = wanted.replace(/\/+$/, "");
  return value === base || ["/", "|", "?", "#"].some((separator) => value.startsWith(base + separator));
}

export function uriAbove({ value }, wanted) {
  return value.includes("://") && uriBelow({ value: wanted }, value);
}
