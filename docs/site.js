// Draws the Mermaid diagrams. The program is 5 MB, so only pages with a diagram load it.
const here = document.currentScript.src;
const blocks = document.querySelectorAll("code.language-mermaid");
if (blocks.length > 0) {
  const program = document.createElement("script");
  program.src = new URL("mermaid.min.js", here);
  program.onload = () => {
    for (const block of blocks) {
      block.parentElement.className = "mermaid";
      block.parentElement.textContent = block.textContent;
    }
    mermaid.initialize({ startOnLoad: false, securityLevel: "strict", theme: "neutral" });
    mermaid.run();
  };
  document.head.append(program);
}

// On a narrow screen the menu hides the search, so the bar links to the search page.
const bar = document.querySelector(".wy-nav-top");
if (bar) {
  const search = document.createElement("a");
  search.href = new URL("search.html", here);
  search.textContent = "Search";
  search.className = "search-link";
  bar.append(search);
}
