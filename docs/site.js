// Draws the blocks of Mermaid. The program is 5 MB, so it is loaded where there is one only.
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

// On a narrow screen the menu hides the search: its page is one touch away instead.
const bar = document.querySelector(".wy-nav-top");
if (bar) {
  const search = document.createElement("a");
  search.href = new URL("search.html", here);
  search.textContent = "Search";
  search.className = "search-link";
  bar.append(search);
}
