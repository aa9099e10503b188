//! `#[hatchery::context]`: from a function that converses to a call, an entry in the table, and its
//! body.

use proc_macro2::TokenStream;
use quote::{ToTokens as _, quote};
use syn::spanned::Spanned as _;
use syn::{Error, Ident, ItemFn, Result, ReturnType, Type};

use crate::argument::Arguments;
use crate::function::{check, is_result, name_of, place, private};

pub(crate) fn expand(args: TokenStream, item: TokenStream) -> Result<TokenStream> {
    if !args.is_empty() {
        return Err(Error::new(args.span(), "`#[hatchery::context]` takes no arguments"));
    }
    let function: ItemFn = syn::parse2(item)?;
    check(&function)?;
    let Arguments { names, patterns, types } = Arguments::of(&function)?;
    let ItemFn { attrs, vis, sig, block } = &function;
    let name = &sig.ident;
    if sig.asyncness.is_none() {
        return Err(Error::new(
            sig.fn_token.span(),
            "a function that converses is async: write `async fn`",
        ));
    }
    let (Some((_, names)), Some((callee, patterns)), Some((side, types))) =
        (names.split_first(), patterns.split_first(), types.split_first())
    else {
        let what = "the first argument is this side of the context: `callee: hatchery::Callee<…>`";
        return Err(Error::new(sig.paren_token.span.join(), what));
    };
    let output: Type = match &sig.output {
        ReturnType::Default => syn::parse_quote!(()),
        ReturnType::Type(_, output) => (**output).clone(),
    };
    let private = private();
    let naming = name_of(&place(&function.to_token_stream()));
    let of_callee = |part: &str| {
        let part = Ident::new(part, side.span());
        quote!(<#side as #private::IsCallee>::#part)
    };
    let (takes, sends, greets) = (of_callee("In"), of_callee("Out"), of_callee("Started"));
    let (returns, make, serve) = if is_result(&output) {
        let part = |part: &str| {
            let part = Ident::new(part, output.span());
            quote!(<#output as #private::IsResult>::#part)
        };
        let (ok, err) = (part("Ok"), part("Err"));
        (quote!(#ok, #err), quote!(context_result), quote!(serve_context_result))
    } else {
        let parts = quote!(#output, ::hatchery::NoError);
        (parts, quote!(context_plain), quote!(serve_context_plain))
    };
    Ok(quote! {
        #(#attrs)*
        #vis fn #name(
            #(#names: #types),*
        ) -> ::hatchery::ContextCall<#takes, #sends, #greets, #returns> {
            async fn __body(#callee: #side, #(#patterns: #types),*) -> #output #block
            #naming
            #private::submit! {
                #private::ContextFunction::new(__name, |__asked: &#private::Asked, __raw| {
                    #private::#serve::<#side, (#(#types,)*), #output, _, _>(
                        __asked,
                        __raw,
                        |__callee: #side, (#(#names,)*): (#(#types,)*)| {
                            __body(__callee, #(#names),*)
                        },
                    )
                })
            }
            #private::#make::<#side, (#(#types,)*), #output>(__name(), (#(#names,)*))
        }
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn refusal(item: TokenStream) -> String {
        expand(TokenStream::new(), item).unwrap_err().to_string()
    }

    #[test]
    fn what_cannot_converse_is_refused_with_the_reason() {
        assert!(
            refusal(quote!(
                async fn f() {}
            ))
            .contains("first argument")
        );
        assert!(
            refusal(quote!(
                fn f(callee: Callee) {}
            ))
            .contains("async")
        );
        assert!(
            refusal(quote!(
                async fn f<T>(callee: Callee<T>) {}
            ))
            .contains("generic")
        );
    }
}
