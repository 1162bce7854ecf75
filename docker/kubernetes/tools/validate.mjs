// Kubernetes objects as a JSON list on standard input -> for each the list of what is wrong with it, on standard output.
// `node validate.mjs FOLDER`: the folder holds node_modules of package.json.
//
// The validators are compiled from the kinds' own schemas, and pass over fields that they do not know, as a cluster drops
// them. Here such a field is an error: one that no validator has looked at.
import { existsSync, readFileSync } from "node:fs";
import { join } from "node:path";
import { pathToFileURL } from "node:url";

const PACKAGES = {
  "gateway.envoyproxy.io": "@kubernetes-models/envoy-gateway",
  "gateway.networking.k8s.io": "@kubernetes-models/gateway-api",
  "keda.sh": "@kubernetes-models/keda",
  "monitoring.coreos.com": "@kubernetes-models/prometheus-operator",
};

async function validator(root, { apiVersion, kind }) {
  const group = apiVersion.split("/")[0];
  const file = join(root, "node_modules", PACKAGES[group] ?? "kubernetes-models", apiVersion, `${kind}.js`);
  if (!existsSync(file)) return null;
  const schema = readFileSync(file, "utf8").match(/import\{validate\}from"([^"]+)"/)[1];
  return (await import(new URL(schema, pathToFileURL(file)))).validate;
}

function watched(value, looks) {
  if (typeof value !== "object" || value === null) return value;
  return new Proxy(value, {
    get(target, key) {
      if (!looks.has(target)) looks.set(target, new Set());
      looks.get(target).add(key);
      return watched(target[key], looks);
    },
  });
}

function* unknownFields(value, looks, path = "") {
  if (typeof value !== "object" || value === null) return;
  for (const [key, inner] of Object.entries(value)) {
    if (!looks.get(value)?.has(key)) yield `${path}/${key} is not a field`;
    else yield* unknownFields(inner, looks, `${path}/${key}`);
  }
}

async function problems(root, object) {
  const validate = await validator(root, object);
  if (validate === null) return [`no schema for ${object.apiVersion} ${object.kind}`];
  const looks = new Map();
  if (!validate(watched(object, looks))) {
    return validate.errors.map((e) => `${e.instancePath} ${e.keyword} ${JSON.stringify(e.params)}`);
  }
  return [...unknownFields(object, looks)];
}

const objects = JSON.parse(readFileSync(0, "utf8"));
const found = [];
for (const object of objects) found.push(await problems(process.argv[2], object));
console.log(JSON.stringify(found));
