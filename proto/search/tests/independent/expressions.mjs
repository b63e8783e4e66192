// The official expressions, made ready for the evaluator.

// What the package adds to FHIR 4.0.1 (see proto/search/generate), and what needs more than a comparison.
const NOT_R4 = ["DeviceDefinition-classification", "DetectedIssue-status", "ServiceRequest-order-detail"];
const NOT_SEARCHED = ["near", "phonetic", "_text", "_content", "_query"];

/** The search parameters of a type: {code, type, expressions, component}. */
export function parametersOf(official, type) {
  const all = official.entry.map((entry) => entry.resource);
  const byUrl = new Map(all.map((one) => [one.url, one]));
  return all
    .filter((one) => one.version === "4.0.1" && !NOT_R4.includes(one.id) && !NOT_SEARCHED.includes(one.code))
    .filter((one) => one.base.some((base) => [type, "Resource", "DomainResource"].includes(base)))
    .map((one) => ({
      code: one.code,
      type: one.type,
      target: one.target,
      expression: one.expression,
      component: one.component?.map(({ definition, expression }) => ({
        // 4.0.1 names the two definitions of DocumentReference.relationship the wrong way round.
        type: one.id === "DocumentReference-relationship" ? { code: "token", target: "reference" }[expression] : byUrl.get(definition).type,
        expression,
      })),
    }));
}

// The expressions of 4.0.1 use `as` on collections, which later versions of FHIRPath allow for single items only; and
// there is no server from which references could be resolved.
function modern(expression) {
  return expression
    .replace(/\((\S+) as (\w+)\)/g, "$1.ofType($2)")
    .replace(/\.as\((\w+)\)/g, ".ofType($1)")
    .replace(/ofType\(DateTime\)/g, "ofType(dateTime)")
    .replace(/resolve\(\) is (\w+)/g, "isReferenceTo('$1')");
}

// Terms about other types give nothing, at a price.
function termsOf(expression, type) {
  if (!expression.includes(" | ")) return expression;
  const terms = expression.split(" | ").filter((term) => {
    const name = term.match(/^\(?(\w+)/)[1];
    return name === type || /^[a-z]/.test(name) || name === "Resource";
  });
  return terms.join(" | ");
}

/** The type of resource that a reference is to, as far as its text says. */
function referredType(reference, root) {
  const text = reference?.reference;
  if (typeof text === "string") {
    if (text.startsWith("#")) return root.contained?.find((one) => one.id === text.slice(1))?.resourceType;
    const match = text.match(/(?:^|\/)([A-Z][A-Za-z]+)\/[A-Za-z0-9\-.]{1,64}(?:\/_history\/[^/]+)?$/);
    if (match) return match[1];
  }
  return reference?.type;
}

/** A function from a resource to the values of a parameter: [{type, value}], for composites [{parts: [[...]...]}]. */
export function compiled(fhirpath, model, type, parameter) {
  let root;
  const options = {
    resolveInternalTypes: false,
    userInvocationTable: {
      isReferenceTo: {
        fn: (nodes, wanted) => nodes.map((node) => referredType(node.data ?? node, root) === wanted),
        arity: { 1: ["String"] },
        internalStructures: true,
      },
    },
  };
  const compile = (expression) => fhirpath.compile(modern(expression), model, options);
  const plain = (nodes) =>
    nodes
      .map((node) =>
        typeof node === "boolean"
          ? { type: "boolean", value: node }
          : { type: node.fhirNodeDataType ?? node.getTypeInfo().name, value: node.data },
      )
      .filter(({ value }) => value !== undefined && value !== null);
  const outer = compile(termsOf(parameter.expression, type));
  if (!parameter.component) {
    return (resource) => {
      root = resource;
      return plain(outer(resource));
    };
  }
  const parts = parameter.component.map(({ expression }) => compile(expression));
  return (resource) => {
    root = resource;
    return outer(resource)
      .map((base) => ({ parts: parts.map((part) => plain(part(base, { resource }))) }))
      .filter((base) => base.parts.every((part) => part.length > 0));
  };
}
