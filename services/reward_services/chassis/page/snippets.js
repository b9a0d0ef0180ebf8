// The page's call as a shell command and as Python, to copy.

/** A shell command. `call`: {prompt, metadata or null, fileName, url, usesToken}. */
function curlSnippet(call) {
  const { prompt, metadata, fileName, url, usesToken } = call;
  const fields = [`"prompt": ${inHereDocument(JSON.stringify(prompt))}`];
  if (metadata) fields.push(`"metadata": ${inHereDocument(JSON.stringify(metadata))}`);
  fields.push(`"image": "$(base64 < ${shellQuoted(fileName)} | tr -d '\\n')"`);
  return [
    `curl -sS ${shellQuoted(`${url}/v1/score`)} \\`,
    ...(usesToken ? ['  -H "Authorization: Bearer $REWARD_TOKEN" \\'] : []),
    "  -H 'Content-Type: application/json' --data-binary @- <<END",
    `{"items": [{${fields.join(", ")}}], "include_details": true}`,
    "END",
  ].join("\n");
}

/** Python with this project's client. `call` as above. */
function pythonSnippet({ prompt, metadata, fileName, url, usesToken }) {
  const token = usesToken ? ', token=os.environ["REWARD_TOKEN"]' : "";
  const rest = metadata ? `[${pythonLiteral(metadata)}], ` : "";
  return [
    ...(usesToken ? ["import os"] : []),
    "from pathlib import Path",
    "",
    "from reward_api import RewardClient",
    "",
    `image = Path(${pythonLiteral(fileName)}).read_bytes()`,
    `with RewardClient(${pythonLiteral(url)}${token}) as client:`,
    `    batch = client.score([image], [${pythonLiteral(prompt)}], ${rest}include_details=True)`,
    "print(batch.values[0], batch.scores, batch.details[0])",
  ].join("\n");
}

function shellQuoted(text) {
  return /^[\w./:@%+=-]+$/.test(text) ? text : `'${text.replaceAll("'", "'\\''")}'`;
}

/** Backslash, dollar and backtick mean something in a here-document. */
function inHereDocument(text) {
  return text.replace(/[\\$`]/g, "\\$&");
}

function pythonLiteral(value) {
  if (value === null) return "None";
  if (typeof value === "boolean") return value ? "True" : "False";
  if (Array.isArray(value)) return `[${value.map(pythonLiteral).join(", ")}]`;
  if (typeof value === "object") {
    const entries = Object.entries(value);
    return `{${entries.map(([k, v]) => `${pythonLiteral(k)}: ${pythonLiteral(v)}`).join(", ")}}`;
  }
  return JSON.stringify(value);
}

/** A value that fits a JSON Schema: its example, its default, or the plainest one of its type. */
function exampleOf(schema, root = schema, depth = 0) {
  if (depth > 8 || typeof schema !== "object" || schema === null) return null;
  const inner = (part) => exampleOf(part, root, depth + 1);
  if (typeof schema.$ref === "string") return inner(referenced(schema.$ref, root));
  if (schema.examples?.length) return schema.examples[0];
  if ("default" in schema) return schema.default;
  if ("const" in schema) return schema.const;
  if (schema.enum) return schema.enum[0];
  const variants = schema.anyOf ?? schema.oneOf ?? schema.allOf;
  if (variants?.length) return inner(variants[0]);
  switch (Array.isArray(schema.type) ? schema.type[0] : schema.type) {
    case "object": {
      const names = schema.required ?? Object.keys(schema.properties ?? {});
      return Object.fromEntries(names.map((name) => [name, inner(schema.properties?.[name])]));
    }
    case "array":
      return (schema.prefixItems ?? (schema.items ? [schema.items] : [])).map(inner);
    case "string":
      return "";
    case "integer":
    case "number":
      return schema.minimum ?? 1;
    case "boolean":
      return false;
    default:
      return null;
  }
}

function referenced(pointer, root) {
  return pointer.split("/").slice(1).reduce((node, key) => node?.[key], root);
}
