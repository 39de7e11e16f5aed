// The widgets' bundle typesets its labels the way MathJax 2 did; the page has MathJax 3.
document.addEventListener("DOMContentLoaded", () => {
  if (window.MathJax && !MathJax.Hub)
    MathJax.Hub = { Queue: ([, , node]) => node.textContent.includes("\\(") && MathJax.startup.promise.then(() => MathJax.typesetPromise([node])) };
});

// Opened as a file, the book may not fetch its own pages: search then lists titles without excerpts.
if (location.protocol === "file:") DOCUMENTATION_OPTIONS.SHOW_SEARCH_SUMMARY = false;
