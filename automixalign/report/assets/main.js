// Build the page from its facts.

const data = JSON.parse(document.getElementById("data").textContent);
if (data.kind === "run") document.querySelector("header").append(originOf(data));
const sections = (data.kind === "run" ? runSections : comparisonSections)(data).filter(Boolean);
document.querySelector("main").append(...sections);
const links = sections.map((part) => h("li", {}, h("a", { href: `#${part.id}` }, part.querySelector("h2").textContent)));
document.querySelector("nav").append(h("ul", {}, links));
