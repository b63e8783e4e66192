// Queries for a parameter: values that occur, near misses, all prefixes and modifiers. Each is {text, matches}, where
// `text` is the part of a filter behind `?` and `matches` takes the values of a row.

import { codeText, date, fold, number, ofType, reference, strings, timeOf, token, uri, uriAbove, uriBelow } from "./compare.mjs";

const PREFIXES = ["eq", "ne", "gt", "lt", "ge", "le", "sa", "eb", "ap"];

const escaped = (text) => String(text).replace(/[\\,|$]/g, "\\$&");
const encoded = (text) => encodeURIComponent(text);

/** Up to `count` different items, spread over the list. */
function spread(items, count) {
  const different = [...new Map(items.map((item) => [JSON.stringify(item), item])).values()];
  const stride = Math.max(1, different.length / count);
  return Array.from({ length: Math.min(count, different.length) }, (_, index) => different[Math.floor(index * stride)]);
}

const some = (compare, ...asked) => (found) => found.some((one) => compare(one, ...asked));

function query(code, modifier, values, matches) {
  return { text: `${code}${modifier ? ":" + modifier : ""}=${[values].flat().map(encoded).join(",")}`, matches };
}

const missing = (code) => [
  query(code, "missing", "true", (found) => found.length === 0),
  query(code, "missing", "false", (found) => found.length > 0),
];

function tokens({ code }, found) {
  const pairs = found.flatMap(({ type, value }) => {
    if (type === "CodeableConcept") return (value.coding ?? []).map((one) => ({ system: one.system, code: one.code }));
    if (type === "Coding") return [{ system: value.system, code: value.code }];
    if (type === "Identifier") return [{ system: value.system, code: value.value }];
    if (type === "ContactPoint") return [{ code: value.value }];
    return typeof value === "object" ? [] : [{ code: String(value) }];
  });
  const boolean = found.length > 0 && found.every(({ type }) => type === "boolean" || type === "dateTime");
  const queries = [];
  const chosen = spread(pairs.filter((pair) => pair.code !== undefined && pair.code !== ""), 3);
  for (const pair of chosen) {
    queries.push(query(code, "", escaped(pair.code), some(token, { code: pair.code })));
    queries.push(query(code, "", `|${escaped(pair.code)}`, some(token, { system: "", code: pair.code })));
    queries.push(query(code, "not", escaped(pair.code), (values) => !some(token, { code: pair.code })(values)));
    if (pair.system) {
      const full = `${escaped(pair.system)}|${escaped(pair.code)}`;
      queries.push(query(code, "", full, some(token, pair)));
      queries.push(query(code, "", `${escaped(pair.system)}|`, some(token, { system: pair.system })));
      queries.push(query(code, "", `${full}x`, some(token, { system: pair.system, code: pair.code + "x" })));
      queries.push(query(code, "not", full, (values) => !some(token, pair)(values)));
    }
  }
  if (chosen.length > 0 && !boolean) {
    const { code: first } = chosen[0];
    for (const miss of [first.toUpperCase(), first.slice(0, -1), first + "0"].filter((miss) => miss !== "")) {
      queries.push(query(code, "", escaped(miss), some(token, { code: miss })));
    }
    const { code: last } = chosen.at(-1);
    queries.push(query(code, "", [escaped(first), escaped(last), "no-such-code"], (values) =>
      [first, last].some((one) => some(token, { code: one })(values))));
    queries.push(query(code, "not", [escaped(first), escaped(last)], (values) =>
      ![first, last].some((one) => some(token, { code: one })(values))));
  }
  const texts = found.flatMap(({ type, value }) =>
    type === "CodeableConcept" ? [value.text, value.coding?.[0]?.display] : type === "Coding" ? [value.display] : type === "Identifier" ? [value.type?.text] : []);
  for (const text of spread(texts.filter(Boolean), 2)) {
    const start = text.slice(0, 5).toUpperCase();
    queries.push(query(code, "text", escaped(start), some(codeText, start)));
    queries.push(query(code, "text", escaped(text.slice(1)), some(codeText, text.slice(1))));
  }
  const typed = found.filter(({ type, value }) => type === "Identifier" && value.value && value.type?.coding?.[0]?.system && value.type.coding[0].code);
  for (const { value } of spread(typed, 2)) {
    const { system, code: kind } = value.type.coding[0];
    const asked = { system, code: kind, identifier: value.value };
    queries.push(query(code, "of-type", [system, kind, value.value].map(escaped).join("|"), some(ofType, asked)));
    queries.push(query(code, "of-type", [system, kind, value.value + "0"].map(escaped).join("|"), some(ofType, { ...asked, identifier: value.value + "0" })));
  }
  return queries;
}

function texts({ code }, found) {
  const queries = [];
  for (const text of spread(found.flatMap(strings).filter((text) => fold(text).length > 2), 3)) {
    const start = fold(text).slice(0, 3).toUpperCase();
    const begins = (wanted) => some((one) => strings(one).some((part) => fold(part).startsWith(fold(wanted))));
    queries.push(query(code, "", escaped(start), begins(start)));
    queries.push(query(code, "", escaped(text), begins(text)));
    queries.push(query(code, "", escaped(text.slice(1)), begins(text.slice(1))));
    const middle = fold(text).slice(1, 5);
    queries.push(query(code, "contains", escaped(middle), some((one) => strings(one).some((part) => fold(part).includes(middle)))));
    for (const exact of [text, fold(text), text.slice(0, -1)]) {
      queries.push(query(code, "exact", escaped(exact), some((one) => strings(one).includes(exact))));
    }
    queries.push(query(code, "", [escaped(start), "zzz"], begins(start)));
  }
  return queries;
}

/** The first instant that a value names, as a text. */
function firstTime({ type, value }) {
  if (typeof value === "string") return ["date", "dateTime", "instant"].includes(type) ? value : undefined;
  return value.start ?? value.end ?? value.event?.[0] ?? value.repeat?.boundsPeriod?.start;
}

function dates({ code }, found) {
  const times = spread(found.map(firstTime).filter((text) => typeof text === "string" && timeOf(text)), 4);
  const queries = [];
  const add = (text, prefixes) => {
    for (const prefix of prefixes) queries.push(query(code, "", prefix + text, some(date, prefix, text)));
  };
  times.forEach((text, index) => {
    if (index === 0) {
      add(text.slice(0, 10), PREFIXES);
      queries.push(query(code, "", text.slice(0, 10), some(date, "eq", text.slice(0, 10))));
    }
    if (index === 1 || times.length === 1) add(text.slice(0, 4), ["eq", "ge", "lt", "sa", "eb", "ne"]);
    if (index === 2 || times.length === 1) add(text.slice(0, 7), ["eq", "gt", "le", "ap"]);
    if (index === 3 || times.length === 1) add(text, PREFIXES);
    if (text.length >= 19) add(text.slice(0, 16) + (text.match(/(Z|[+-]\d\d:\d\d)$/)?.[0] ?? ""), ["eq", "gt"]);
  });
  if (times.length > 1) {
    const [first, last] = [times[0].slice(0, 4), times.at(-1).slice(0, 7)];
    queries.push(query(code, "", [first, `gt${last}`], (values) => some(date, "eq", first)(values) || some(date, "gt", last)(values)));
  }
  return queries;
}

function numbers({ code }, found) {
  const values = found.map(({ type, value }) => (typeof value === "number" ? { value } : type === "Range" ? (value.low ?? value.high) : value));
  const chosen = spread(values.filter((value) => value?.value !== undefined), 3);
  const queries = [];
  chosen.forEach((value, index) => {
    const text = String(value.value).includes("e") ? value.value.toFixed(12) : String(value.value);
    for (const prefix of index === 0 ? PREFIXES : ["eq", "lt", "ap"]) {
      queries.push(query(code, "", prefix + text, some(number, prefix, text)));
    }
    const rounded = Number(value.value).toFixed(0).replace("-0", "0");
    queries.push(query(code, "", rounded, some(number, "eq", rounded)));
    queries.push(query(code, "", `ne${rounded}`, some(number, "ne", rounded)));
    const units = [];
    if (value.code) units.push({ system: value.system ?? "", code: value.code }, { system: "", code: value.code });
    if (value.unit) units.push({ system: "", code: value.unit });
    if (value.currency) units.push({ system: "urn:iso:std:iso:4217", code: value.currency }, { system: "", code: "XXX" });
    units.push({ system: "http://example.org/units", code: "none" });
    for (const unit of units) {
      const suffix = `|${escaped(unit.system)}|${escaped(unit.code)}`;
      queries.push(query(code, "", `${rounded}${suffix}`, some(number, "eq", rounded, unit)));
      queries.push(query(code, "", `ge${text}${suffix}`, some(number, "ge", text, unit)));
    }
  });
  return queries;
}

function references({ code, target }, found) {
  const queries = [];
  const literal = found.map((one) => (one.type === "Reference" ? one.value.reference : undefined));
  const relative = spread(literal.filter((text) => /^[A-Z]\w*\/[^/]+$/.test(text ?? "")), 3);
  for (const text of relative) {
    const [type, id] = text.split("/");
    queries.push(query(code, "", id, some(reference, { id })));
    queries.push(query(code, "", text, some(reference, { type, id })));
    queries.push(query(code, "", `${text}/_history/1`, some(reference, { type, id, version: "1" })));
    queries.push(query(code, "", `http://example.org/fhir/${text}`, some(reference, { url: `http://example.org/fhir/${text}` })));
    if (target.includes(type)) queries.push(query(code, type, id, some(reference, { type, id })));
    if (target[0] !== type) queries.push(query(code, target[0], id, some(reference, { type: target[0], id })));
    queries.push(query(code, "", `${id.slice(0, -1) || "0"}`, some(reference, { id: id.slice(0, -1) || "0" })));
  }
  if (relative.length > 1) {
    const ids = relative.map((text) => text.split("/")[1]);
    queries.push(query(code, "", ids, (values) => ids.some((id) => some(reference, { id })(values))));
  }
  const absolute = found.map((one) => (one.type === "Reference" ? one.value.reference : one.value));
  for (const text of spread(absolute.filter((text) => typeof text === "string" && /^[a-z]+:/.test(text)), 2)) {
    const [url, version] = text.split("|");
    queries.push(query(code, "", url, some(reference, { url })));
    if (version) queries.push(query(code, "", `${url}|${version}`, some(reference, { url, version })));
  }
  const identified = found.filter((one) => one.type === "Reference" && one.value.identifier?.value);
  for (const { value } of spread(identified, 2)) {
    const { system, value: identifier } = value.identifier;
    const asked = { system: system ?? "", code: identifier };
    queries.push(query(code, "identifier", `${escaped(asked.system)}|${escaped(identifier)}`, some((one) =>
      one.type === "Reference" && one.value.identifier !== undefined && token({ type: "Identifier", value: one.value.identifier }, asked))));
  }
  return queries;
}

function uris({ code }, found) {
  const queries = [];
  for (const text of spread(found.map(({ value }) => value).filter((value) => typeof value === "string"), 3)) {
    queries.push(query(code, "", escaped(text), some(uri, text)));
    queries.push(query(code, "", escaped(text + "/"), some(uri, text + "/")));
    if (!text.includes("://")) continue;
    const above = text.slice(0, text.lastIndexOf("/"));
    if (above.includes("://") && !above.endsWith("/")) queries.push(query(code, "below", escaped(above), some(uriBelow, above)));
    queries.push(query(code, "below", escaped(text.slice(0, -1)), some(uriBelow, text.slice(0, -1))));
    queries.push(query(code, "above", escaped(text + "/x/y"), some(uriAbove, text + "/x/y")));
    queries.push(query(code, "above", escaped(text + "x"), some(uriAbove, text + "x")));
  }
  return queries;
}

/** A query text and a comparison for one value of a component. */
function component(kind, { type, value }) {
  if (kind === "token" && type === "CodeableConcept" && value.coding?.[0]?.code) {
    const { system, code } = value.coding[0];
    return { text: system ? `${escaped(system)}|${escaped(code)}` : escaped(code), is: (one) => token(one, system ? { system, code } : { code }) };
  }
  if (kind === "quantity" && value.value !== undefined) {
    const text = Number(value.value).toFixed(1);
    return { text: `ge${text}`, is: (one) => number(one, "ge", text) };
  }
  if (kind === "date" && type === "dateTime") return { text: `le${value.slice(0, 10)}`, is: (one) => date(one, "le", value.slice(0, 10)) };
  if (kind === "string" && fold(value).length > 0) return { text: escaped(value), is: (one) => strings(one).some((part) => fold(part).startsWith(fold(value))) };
  if (kind === "reference" && value.reference) {
    const [of, id] = value.reference.split("/");
    return { text: value.reference, is: (one) => reference(one, { type: of, id }) };
  }
  return undefined;
}

function composites({ code, component: components }, found) {
  const queries = [];
  const both = (parts) => (values) => values.some((base) => parts.every((part, index) => base.parts[index].some(part.is)));
  const chosen = spread(found, 6).map((base) => base.parts.map((part, index) => component(components[index].type, part[0])));
  const complete = chosen.filter((parts) => parts.every(Boolean));
  for (const parts of complete) queries.push(query(code, "", parts.map(({ text }) => text).join("$"), both(parts)));
  if (complete.length > 1) {
    const mixed = [complete[0][0], ...complete.at(-1).slice(1)];
    queries.push(query(code, "", mixed.map(({ text }) => text).join("$"), both(mixed)));
  }
  return queries;
}

const BY_KIND = {
  token: tokens,
  string: texts,
  date: dates,
  number: numbers,
  quantity: numbers,
  reference: references,
  uri: uris,
  composite: composites,
};

export function queriesOf(parameter, found) {
  const queries = [...BY_KIND[parameter.type](parameter, found), ...missing(parameter.code)];
  return [...new Map(queries.map((one) => [one.text, one])).values()];
}
