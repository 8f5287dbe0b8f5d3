// Elements made of plain values. Text goes in as text only: class names, file names and reports come from strangers.

/** An element; `properties` are set as such, `children` are elements or what becomes text (null: nothing). */
export function element(name, properties = {}, ...children) {
  const made = Object.assign(document.createElement(name), properties);
  made.append(...children.flat(Infinity).filter((child) => child !== null && child !== undefined));
  return made;
}

// Pictures narrower than this are shown pixel by pixel: scaled up smoothly, one sees what the model does not.
const SMALL = 100;
const MOST_LETTERS = 120;

export const byId = (id) => document.getElementById(id);

/** A share of 1 as percent, so that 0 and 100 are said only of what is exactly that. */
export function percent(share) {
  if (typeof share !== "number") return "not measured";
  if (share > 0 && share < 0.001) return "< 0.1 %";
  if (share < 1 && share > 0.999) return "> 99.9 %";
  return `${(100 * share).toFixed(1)} %`;
}

/** Three significant digits, with a real minus sign. */
export function number(value) {
  if (typeof value !== "number") return "–";
  return Number(value.toPrecision(3)).toString().replace("-", "−");
}

/** A name of bounded length: a hostile one must not push the rest off the page. */
export const clipped = (text) => (text.length > MOST_LETTERS ? `${text.slice(0, MOST_LETTERS)}…` : text);

/** What a class is called: a model without names gives indices. */
export const className = (label, index) =>
  label === undefined || label === String(index) ? `class ${index}` : clipped(label);

/** A sentence without its full stop, to which one can be put. */
export const capital = (text) => text.charAt(0).toUpperCase() + text.slice(1).replace(/\.$/, "");

/** A bar of `share` (0..1) of its width. Its width is set by script: the page's policy forbids style attributes. */
export function bar(share, kind = "") {
  const inner = element("span", { className: "fill" });
  inner.style.width = `${100 * Math.min(Math.max(share || 0, 0), 1)}%`;
  const outer = element("span", { className: `bar ${kind}` }, inner);
  outer.setAttribute("aria-hidden", "true");
  return outer;
}

/** An <img> of a blob. The blob is let go once the picture is decoded, or turns out not to be one. */
export function picture(blob, alt, onFailure = () => {}) {
  const image = element("img", { alt, decoding: "async" });
  const url = URL.createObjectURL(blob);
  image.addEventListener(
    "load",
    () => {
      URL.revokeObjectURL(url);
      image.classList.toggle("small", image.naturalWidth < SMALL);
    },
    { once: true },
  );
  image.addEventListener("error", () => (URL.revokeObjectURL(url), onFailure(image)), { once: true });
  image.src = url;
  return image;
}
