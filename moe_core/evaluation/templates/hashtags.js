// Sorts and filters the table of hashtags. The page allows this script by its hash, and no other.
const table = document.getElementById("hashtags"), body = table.tBodies[0], rows = [...body.rows]
const text = document.getElementById("hashtag-text"), band = document.getElementById("hashtag-band")
const count = document.getElementById("hashtag-count")

function filter() {
  const wanted = text.value.trim().replace(/^#/, "").toLowerCase()
  let seen = 0
  for (const row of rows) {
    const [tag, its] = [row.cells[0].textContent.toLowerCase(), row.cells[1].textContent]
    row.hidden = !tag.includes(wanted) || Boolean(band.value && its !== band.value)
    seen += !row.hidden
  }
  count.textContent = `${seen} of ${rows.length}`
}

function value(row, column) {
  const first = row.cells[column].firstChild, word = first ? first.textContent.trim() : ""
  const number = Number(word.replaceAll(",", "").replace("−", "-"))
  return word === "" ? null : Number.isNaN(number) ? word : number
}

function sort(head, column) {
  const falls = head.ariaSort ? head.ariaSort === "ascending" : column > 1
  for (const other of table.tHead.rows[0].cells) other.removeAttribute("aria-sort")
  head.setAttribute("aria-sort", falls ? "descending" : "ascending")
  const words = new Intl.Collator()
  const order = rows.map((row) => [value(row, column), row])
  order.sort(([a], [b]) => {
    if (a === null || b === null) return (a === null) - (b === null) // what has no value comes last either way
    const less = typeof a === "number" && typeof b === "number" ? a - b : words.compare(String(a), String(b))
    return falls ? -less : less
  })
  body.append(...order.map(([, row]) => row))
}

for (const [column, head] of [...table.tHead.rows[0].cells].entries()) {
  const button = document.createElement("button")
  button.append(...head.childNodes)
  button.addEventListener("click", () => sort(head, column))
  head.append(button)
}
text.addEventListener("input", filter)
band.addEventListener("change", filter)
document.getElementById("hashtag-filter").hidden = false
filter()
